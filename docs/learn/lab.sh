# A small laboratory: one broker and up to three nodes on this machine, in a directory that goes when the shell ends.
# Read into a bash of your own, from the project's directory:  . docs/learn/lab.sh
#
#   broker_up, broker_down     start Mosquitto; stop it with SIGTERM, so that it saves its sessions
#   start NAME [FLAG...]       start node a, b or c on what it has on disk, and wait until it is ready and, if there is
#                              a broker, connected
#   stop NAME, crash NAME      SIGTERM; kill -9
#   a, b, c                    redis-cli to that node:  a SET key value
#   soon REPLY COMMAND...      ask again and again until the command says this, 60 s at most:  soon '"v"' b GET key
#   exchange NAME OTHER        one exchange between two nodes: SYNC, which redis-cli would take for Redis's own
#   same NAME...               wait until these nodes hold the same; says their Merkle root
#   figure NAME FIGURE         one figure of STATS
#
# Before a node starts, FAKETIME=+60s sets its clock off (libfaketime).  Anti-entropy is off, so that each mechanism can
# be seen alone; `--set anti_entropy.enabled=true` puts it on.

LAB_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
LAB=$(mktemp -d)
: "${PORT_a:=7401}" "${PORT_b:=7402}" "${PORT_c:=7403}" "${PORT_broker:=7400}"
PATH=$PATH:/usr/sbin  # where Mosquitto is
command -v merklekv > /dev/null || PATH=$LAB_ROOT/.venv/bin:$PATH
for program in merklekv mosquitto redis-cli nc; do
    command -v $program > /dev/null || echo "$program is missing: 'make test ARGS=\"-k test_scripts\"' installs it" >&2
done
declare -A LAB_PID=()
printf '[pytest]\npythonpath = %s/tests\n' "$LAB_ROOT" > "$LAB/pytest.ini"  # for tests of your own, in $LAB
echo 'pytest_plugins = ["fixtures.node", "fixtures.broker", "fixtures.cluster"]' > "$LAB/conftest.py"

lab_end() {
    kill -9 "${LAB_PID[@]}" 2> /dev/null
    wait "${LAB_PID[@]}" 2> /dev/null
    rm -rf "$LAB"
}
trap lab_end EXIT

a() { redis-cli --no-raw -p "$PORT_a" "$@"; }
b() { redis-cli --no-raw -p "$PORT_b" "$@"; }
c() { redis-cli --no-raw -p "$PORT_c" "$@"; }

lab_launch() {  # NAME COMMAND...: in the background, its output in a file
    local name=$1
    shift
    { "$@" >> "$LAB/$name.log" 2>&1 < /dev/null & } 2> /dev/null  # or the shell would tell of each beginning
    LAB_PID[$name]=$!
    disown  # and of each end
}

lab_wait() {  # COMMAND...: until it succeeds, 60 s at most
    local deadline=$((SECONDS + 60))
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || break
        sleep 0.1
    done
    [ $SECONDS -lt $deadline ] && return
    echo "waited 60 s in vain for: $*; the logs are in $LAB" >&2
    return 1
}

lab_is_gone() { ! kill -0 "${LAB_PID[$1]}"; }
lab_answers() { [ "$("$1" PING)" = PONG ]; }
lab_broker_answers() { (: < "/dev/tcp/127.0.0.1/$PORT_broker") 2> /dev/null; }
lab_is_connected() { "$1" REPLICATE status | grep -q state=connected; }

broker_up() {
    printf '%s\n' "listener $PORT_broker 127.0.0.1" 'allow_anonymous true' 'persistence true' \
        "persistence_location $LAB/" 'max_queued_messages 100000' 'user root' > "$LAB/mosquitto.conf"
    lab_launch broker mosquitto -c "$LAB/mosquitto.conf"
    lab_wait lab_broker_answers && echo "the broker is up"
}

lab_end_one() {  # SIGNAL NAME: and forget its process, whose number may become another's
    kill "$1" "${LAB_PID[$2]}" && lab_wait lab_is_gone "$2" && unset "LAB_PID[$2]"
}

broker_down() { lab_end_one -TERM broker && echo "the broker is down"; }

start() {
    local name=$1 port=PORT_$1 skew=() sharing=()
    shift
    if [ -e "$LAB/mosquitto.conf" ]; then  # there is, or was, a broker
        sharing=(--set replication.enabled=true --set "replication.mqtt_port=$PORT_broker"
            --set replication.topic_prefix=lab --set replication.heartbeat_seconds=1)
    fi
    if [ -n "$FAKETIME" ]; then
        skew=(env "LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketime.so.1)" "FAKETIME=$FAKETIME"
            FAKETIME_DONT_FAKE_MONOTONIC=1)
    fi
    lab_launch "$name" "${skew[@]}" merklekv run --data-dir "$LAB/$name" --port "${!port}" --node-id "$name" \
        --set anti_entropy.enabled=false "${sharing[@]}" "$@"
    lab_wait lab_answers "$name" || return
    if [ ${#sharing[@]} -gt 0 ] && lab_broker_answers; then
        lab_wait lab_is_connected "$name" || return  # before that it hears nothing
    fi
    echo "$name is up"
}

stop() { lab_end_one -TERM "$1" && echo "$1 has stopped"; }
crash() { lab_end_one -KILL "$1" && echo "$1 is dead"; }

soon() {
    local wanted=$1 reply deadline=$((SECONDS + 60))
    shift
    while reply=$("$@" 2>&1); [ "$reply" != "$wanted" ] && [ $SECONDS -lt $deadline ]; do sleep 0.1; done
    echo "$reply"
}

lab_root() { "$1" HASH | tr -d '"'; }
lab_equal() {
    local name root
    root=$(lab_root "$1")
    for name in "$@"; do [ "$(lab_root "$name")" = "$root" ] || return; done
}
same() {
    lab_wait lab_equal "$@" && echo "the same root on $*: $(lab_root "$1" | cut -c 1-16)..."
}

exchange() {
    local port=PORT_$1 other=PORT_$2 reply
    {
        echo "SYNC 127.0.0.1 ${!other}" >&3
        read -r reply <&3
    } 3<> "/dev/tcp/127.0.0.1/${!port}"
    echo "${reply%$'\r'}"
}

figure() {
    local port=PORT_$1
    merklekv stats "127.0.0.1:${!port}" "$2" | tr -s ' '
}
