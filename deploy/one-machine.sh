#!/bin/sh
# Sets up a cluster on one machine without `milonga dev`: certificates, one configuration file per server, the servers
# themselves, `cluster init`. It shows every step that several machines would take, and ends the servers at Ctrl-C.
#
#   deploy/one-machine.sh DIR [BASE_PORT]
set -eu

dir=${1:?usage: one-machine.sh DIR [BASE_PORT]}
base=${2:-7700}
milonga=${MILONGA:-milonga}
layouts="1 2 3"
units="1 2 3"

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
certs=$dir/certs

address() { echo "127.0.0.1:$((base + $1))"; }
layout_addresses="$(address 1),$(address 2),$(address 3)"
layout_list="\"$(address 1)\", \"$(address 2)\", \"$(address 3)\""

issue() { [ -e "$certs/$1.pem" ] || "$milonga" certs issue --dir "$certs" --name "$1" --role "$2" >/dev/null; }

configure() { # name, address, more lines
    {
        echo "name = \"$1\""
        echo "listen = \"$2\""
        echo "admin = \"$2\""
        echo "layout = [$layout_list]"
        echo "certs = \"$certs\""
        printf '%b' "${3:-}"
    } >"$dir/$1.toml"
}

# 1. An authority, and a certificate for every server and client.
[ -e "$certs/ca.pem" ] || "$milonga" certs init --dir "$certs"
issue admin admin
issue caretaker control
for n in $layouts; do issue "layout-$n" layout; done
issue sequencer-1 sequencer
for n in $units; do issue "unit-$n" logunit; done

# 2. A configuration file for each.
for n in $layouts; do
    care="caretaker-cert = \"$certs/caretaker.pem\"\ncaretaker-key = \"$certs/caretaker.key\"\n"
    configure "layout-$n" "$(address "$n")" "dir = \"$dir/layout-$n\"\n$care"
done
configure sequencer-1 "$(address 11)"
for n in $units; do
    configure "unit-$n" "$(address $((20 + n)))" "dir = \"$dir/unit-$n\"\nfile-bytes = 33554432\n"
done
cat >"$dir/milonga.toml" <<END
layout = [$layout_list]
ca = "certs/ca.pem"
cert = "certs/admin.pem"
key = "certs/admin.key"
END

# 3. The servers, each a process; all end with this script.
pids=""
start() { # role, name
    "$milonga" "$1" --config "$dir/$2.toml" >"$dir/$2.out" 2>"$dir/$2.log" &
    pids="$pids $!"
}
stop() {
    trap - INT TERM EXIT
    # shellcheck disable=SC2086
    kill $pids 2>/dev/null || true
    wait
}
trap stop INT TERM EXIT
for n in $layouts; do start layout "layout-$n"; done
start sequencer sequencer-1
for n in $units; do start logunit "unit-$n"; done

# 4. The first layout, once. A server that is not up yet refuses nothing: the command may be repeated.
export MILONGA_CLUSTER="$dir/milonga.toml"
if [ ! -e "$dir/initialised" ]; then
    tries=0
    until "$milonga" cluster init --layout "$layout_addresses" --sequencer "$(address 11)" \
        --chain "$(address 21),$(address 22),$(address 23)"; do
        tries=$((tries + 1))
        [ "$tries" -lt 30 ] || exit 1
        sleep 1
    done
    touch "$dir/initialised"
fi
"$milonga" cluster status --wait --deadline 60s
echo "use it with:  export MILONGA_CLUSTER=$MILONGA_CLUSTER"
echo ready
wait
