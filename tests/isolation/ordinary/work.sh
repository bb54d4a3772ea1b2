#!/usr/bin/env bash
# Ordinary work of a Bash script, a line for each thing that went well.
cd "$(mktemp -d)"

work() {
    if ("$1"); then echo "$1"; else echo "$1: $?"; fi
}

pipes() {
    set -e
    [ "$(seq 1000 | sort -rn --parallel=4 | head -n 1)" = 1000 ]
    cat <(echo substituted) <<<here >both
    exec 3<>both 4>&1
    coproc cat
    echo through >&"${COPROC[1]}"
    read -r line <&"${COPROC[0]}"
    [ "$line" = through ]
}

children() {
    set -e
    (exit 3) &
    wait $! || [ $? = 3 ]
    seq 8 | xargs -P 4 -n 1 sh -c 'exit 0'
    timeout 0.05 sleep 9 || [ $? = 124 ]
    setsid true
    nohup true 2>nohup.txt
    (trap 'exit 7' TERM; kill -TERM $BASHPID; sleep 9) || [ $? = 7 ]
    nice -n 1 true
    ionice -c 3 true
    taskset -p $$ >affinity.txt
    script -qc 'echo typed' typed.txt >typescript.txt # a terminal of its own
    ulimit -n 512
}

files() {
    set -e
    dd if=/dev/zero of=data bs=64k count=4 conv=fsync status=none
    cp --archive --reflink=auto data copy
    cp --sparse=always data sparse
    tar -cz data copy | tar -tz >listed.txt
    gzip -k data
    gunzip -t data.gz
    mkfifo fifo
    (echo fifo >fifo) &
    [ "$(cat fifo)" = fifo ]
    flock lock true
    ln data hard
    ln -s data soft
    touch -d '2001-01-01' data
    chmod 600 data
    chgrp "$(id -g)" data
    mv data moved
    truncate -s 5 moved
    split -b 64k copy part
    find . -type f -newer moved -exec md5sum {} + >sums.txt
    df . >df.txt
    sync moved
    sed -i s/copy/x/ listed.txt
    awk '{ n++ } END { exit n != 2 }' listed.txt
    rm -r ./*
}

network() {
    set -e
    perl -MIO::Socket::INET -e '
        my $listener = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die "listen: $!";
        open(my $port, ">", "port.new"); print $port $listener->sockport, "\n"; close($port);
        rename("port.new", "port");
        print {$listener->accept} "over TCP\n"' &
    until [ -e port ]; do sleep 0.01; done
    exec 3<>"/dev/tcp/127.0.0.1/$(cat port)"
    read -r line <&3
    [ "$line" = 'over TCP' ]
    echo datagram >/dev/udp/127.0.0.1/9
    getent hosts localhost >hosts.txt
    openssl rand 8 >random
}

for each in pipes children files network; do work "$each"; done
