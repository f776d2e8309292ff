#!/bin/sh
# Make every password of the deployment once, and RabbitMQ's definitions from them. Run it again at any time:
# what exists stays. Another machine: deploy/secrets/generate.sh MACHINE...
#
# The folder is closed to other users of this host (0700). The files in it are 0444, because a container sees
# only its own files, mounted one by one, and reads them under a user id that is not yours.
set -eu
umask 077

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${MMLW_SECRETS:-$here/generated}
python=${PYTHON:-python3}

mkdir -p "$out"
chmod 0700 "$out"

for user in worker operator dashboard monitoring shuttle-1 branch-1 pump-01 grafana_admin "$@"; do
    case $user in
        '' | *[!A-Za-z0-9_-]*) echo "generate.sh: \"$user\": only letters, digits, - and _" >&2; exit 2 ;;
    esac
    file=$out/${user}_password
    if [ ! -s "$file" ]; then
        rm -f "$file.new"
        # 32 characters of 62: 190 bits. No newline, so that a reader who does not trim it is right too.
        head -c 1024 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9' | head -c 32 >"$file.new"
        [ "$(wc -c <"$file.new")" -eq 32 ] || { echo "generate.sh: too little randomness" >&2; exit 1; }
        mv "$file.new" "$file"
    fi
    chmod 0444 "$file"
done

"$python" "$here/../rabbitmq/definitions.py" "$out"
chmod 0444 "$out/definitions.json"
echo "secrets are in $out"
