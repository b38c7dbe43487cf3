#!/usr/bin/env bash
# A real Slurm on this one machine, in a folder of its own, for tests and for trying things out.
#
#   slurm/test_cluster.sh up                        start it, wait until the node is idle (again: does nothing)
#   eval "$(slurm/test_cluster.sh env)"             let sbatch, squeue, ... of this shell talk to it
#   slurm/test_cluster.sh restart-controller        kill -9 slurmctld and start it again; running jobs go on
#   slurm/test_cluster.sh down [--keep]             cancel jobs, stop all, remove the folder (--keep: logs stay)
#
# HARNESS_TEST_CLUSTER is the folder, HARNESS_TEST_CLUSTER_PORTS="26817 26818" the ports of controller and node.
# Needs no root, systemd, cgroups or accounting. For one user only: jobs run as the user who started it.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin # a plain user's PATH often lacks the daemons' folder
dir=${HARNESS_TEST_CLUSTER:-${TMPDIR:-/tmp}/harness-test-cluster-$(id -un)}
mkdir -p "$(dirname "$dir")"
dir=$(cd "$(dirname "$dir")" && pwd -P)/$(basename "$dir")
mark=$dir/.harness-test-cluster # only a folder with it is ever removed

# Settings of another cluster, for instance of the job this runs in, must not leak into the daemons and their jobs.
for name in "${!SLURM_@}" "${!SBATCH_@}" "${!SRUN_@}"; do unset "$name"; done
export SLURM_CONF=$dir/slurm.conf

die() { echo "test_cluster: $1" >&2; exit "${2:-1}"; }

lives() { [[ $(cat "/proc/$1/stat" 2>/dev/null) == "$1 ($2) "[^ZX]* ]]; } # PID NAME: ids are reused, a zombie is dead

pid_of() { # the daemon's process id, if it lives
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && lives "$pid" "$1" && echo "$pid"
}

stop() { # stop NAME [SIGNAL]: by pid file; KILL when 10 s of the signal did not do
    local pid
    pid=$(pid_of "$1") || return 0
    kill "-${2:-TERM}" "$pid"
    for _ in {1..100}; do lives "$pid" "$1" || return 0; sleep 0.1; done
    kill -KILL "$pid"
}

taken() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

write_config() {
    local ctld_port slurmd_port host=${HOSTNAME%%.*} cpus memory
    read -r ctld_port slurmd_port <<<"${HARNESS_TEST_CLUSTER_PORTS:-26817 26818}"
    while taken "$ctld_port" || taken "$slurmd_port"; do # below the ports that outgoing connections get
        ctld_port=$((20000 + RANDOM % 6000 * 2)) slurmd_port=$((ctld_port + 1))
    done
    cpus=$(nproc)
    ((cpus >= 4)) || cpus=4 # so that workers and a job that preempts fit; nothing binds or limits them
    memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    mkdir -p "$dir/state" "$dir/spool"
    ln -sfn /dev/null "$dir/gpu0" && ln -sfn /dev/zero "$dir/gpu1" # Slurm wants devices, distinct ones
    [[ -s $dir/munge.key ]] || (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    cat >"$dir/gres.conf" <<END
# Two GPUs that do not exist: Slurm counts them and sets CUDA_VISIBLE_DEVICES from the digit in the name.
Name=gpu Flags=nvidia_gpu_env File=$dir/gpu[0-1]
END
    cat >"$SLURM_CONF" <<END
ClusterName=harness
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmdPort=$slurmd_port
CommunicationParameters=NoCtldInAddrAny
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits this long and a second; the default of 120 s is what makes requeues slow.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Not backfill: a job that it starts is not saved at once, so a restarted controller would kill it. Jobs of a
# partition start strictly in order. Time limits are looked at every 30 s; no setting changes that.
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,batch_sched_delay=0
KillWait=10
OverTimeLimit=0
# Ended jobs stay in squeue --states=all and scontrol: without accounting there is no other place to ask.
MinJobAge=3600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# A preempted job gets the signal of --signal (Submitit: USR2) when its GraceTime begins, not only at its time limit.
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
# Believe the CPUs below although the machine may have fewer.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:2 State=UNKNOWN
# low is requeued for high, 20 s after USR2; term is cancelled for it instead.
PartitionName=low  Nodes=$host Default=YES MaxTime=INFINITE PriorityTier=1  PreemptMode=REQUEUE GraceTime=20
PartitionName=term Nodes=$host MaxTime=INFINITE PriorityTier=1  PreemptMode=CANCEL GraceTime=20
PartitionName=high Nodes=$host MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
END
}

start() { # start NAME: unless it runs
    pid_of "$1" >/dev/null && return
    case $1 in
    munged) # --force: it warns instead of refusing a folder that other users cannot enter
        munged --force --num-threads=2 --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
            --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" 2>>"$dir/munged.log" ;;
    *) "$1" -f "$SLURM_CONF" >>"$dir/$1.log" 2>&1 </dev/null ;;
    esac
}

ready() { [[ $(timeout 5 sinfo --noheader --partition=low --format=%T 2>/dev/null) =~ ^(idle|mixed|allocated|completing)$ ]]; }

wait_ready() { # 1: another cluster was faster with the same ports
    for _ in {1..150}; do
        ready && return
        grep -qs "Address already in use" "$dir"/slurm*.log && return 1
        sleep 0.2
    done
    tail -n 15 "$dir"/*.log >&2
    die "the cluster in $dir is not ready after 30 s; the ends of its logs are above"
}

start_all() {
    # New settings only when nothing runs: living daemons must keep their ports.
    pid_of munged >/dev/null || pid_of slurmctld >/dev/null || pid_of slurmd >/dev/null || write_config
    for name in munged slurmctld slurmd; do start "$name" || { tail "$dir/$name.log" >&2; die "$name did not start"; }; done
}

stop_all() { stop slurmctld; stop slurmd KILL; stop munged; } # slurmd has nothing to save and may wait for jobs

up() {
    for name in munged slurmctld slurmd sbatch; do
        type "$name" >/dev/null 2>&1 || die "no $name here. On Debian or Ubuntu: apt-get install slurm-wlm munge" 2
    done
    ((${#dir} <= 90)) || die "the folder's name is too long for a socket in it (at most 90 characters): $dir"
    [[ $dir != *[[:space:]]* ]] || die "no spaces in the folder's name, please: $dir"
    [[ -d $dir ]] || mkdir -m 700 "$dir" # nobody else may get in
    [[ -O $dir ]] || die "$dir belongs to somebody else; name another folder in HARNESS_TEST_CLUSTER"
    [[ -e $mark || -z $(ls -A "$dir") ]] || die "$dir holds something else; name another folder in HARNESS_TEST_CLUSTER"
    touch "$mark"
    start_all
    for _ in {1..5}; do wait_ready && break; stop_all; rm -f "$dir"/slurm*.log; start_all; done
    ready || die "found no free ports"
    echo "Slurm is up in $dir"
}

job_processes() { # this cluster's job steps and what they started, told by their environment
    local file
    for file in /proc/[0-9]*/environ; do
        grep -qszFx "SLURM_CONF=$SLURM_CONF" "$file" || continue # also true of shells after `eval "$(... env)"`
        file=${file%/environ}
        if [[ $(cat "$file/comm" 2>/dev/null) == slurmstepd ]] || grep -qsz "^SLURM_JOB_ID=" "$file/environ"; then
            echo "${file##*/}"
        fi
    done
}

down() {
    [[ -e $mark ]] || return 0
    if pid_of slurmctld >/dev/null; then
        timeout 5 scancel --user="$(id -un)" || true
        for _ in {1..10}; do [[ -n $(timeout 5 squeue --noheader 2>/dev/null) ]] || break; sleep 0.2; done
    fi
    stop slurmctld
    # What ignored TERM, as workers do, or what a dead controller could not cancel.
    for pid in $(job_processes); do kill -KILL "$pid" 2>/dev/null || true; done
    stop_all
    if [[ ${1:-} == --keep ]]; then
        find "$dir" -mindepth 1 -not -name '*.log' -not -path "$mark" -delete
    else
        rm -rf "$dir"
    fi
}

case ${1:-} in
up) up ;;
down) down "${2:-}" ;;
env) echo "export SLURM_CONF=$(printf %q "$SLURM_CONF")" ;;
restart-controller)
    # A controller writes its state up to 5 s late; what it had not written yet would be forgotten, jobs and all.
    pid_of slurmctld >/dev/null && sleep 6 && stop slurmctld KILL
    start slurmctld
    wait_ready || die "the controller found its port taken"
    ;;
*) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
