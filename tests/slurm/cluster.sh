#!/usr/bin/env bash
# A Slurm of two nodes of two cores on this machine, for the tests of this folder. It needs root and Debian's packages
# slurmctld, slurmd, slurm-client and munge (installed by start if apt-get is there), but no systemd and no cgroups.
#   cluster.sh start FOLDER      then export SLURM_CONF=FOLDER/slurm.conf
#   cluster.sh stop FOLDER
# Partitions: main; low and low0, whose jobs give way to main's, with 60 seconds of grace and with none.
set -euo pipefail
action=$1 folder=$2
export SLURM_CONF=$folder/slurm.conf
mark='# nodes of smsff tests/slurm'

start() {
  if ! { command -v srun && command -v slurmctld && command -v slurmd && command -v munged; } > /dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
  fi
  mkdir -p "$folder"/{state,log,spool_node1,spool_node2}
  head -c 128 /dev/urandom > "$folder/munge.key"
  chmod 600 "$folder/munge.key"
  grep -q "$mark" /etc/hosts || echo "127.0.0.1 node1 node2 $mark" >> /etc/hosts # processes meet at the name of a node
  cat > "$SLURM_CONF" << CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=17600
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is requeued waits until its credential has expired.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool_%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd_%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=15
MinJobAge=3600
NodeName=node[1-2] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[17601-17602] CPUs=2 RealMemory=8000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=low0 Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
CONF
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --seed-file="$folder/munged.seed" --log-file="$folder/log/munged.log"
  slurmctld -c
  slurmd -N node1
  slurmd -N node2
  for _ in $(seq 100); do
    [ "$(sinfo --noheader --Node --partition=main --states=idle 2> /dev/null | wc -l)" = 2 ] && return
    sleep 0.3
  done
  echo "the nodes do not come up: see $folder/log" >&2
  return 1
}

end() { # the daemon of a pid file
  [ -s "$1" ] || return 0
  local pid
  pid=$(cat "$1")
  kill "$pid" 2> /dev/null || return 0
  for _ in $(seq 100); do
    kill -0 "$pid" 2> /dev/null || return 0
    sleep 0.1
  done
}

stop() {
  scancel --user=root --full 2> /dev/null || true
  for _ in $(seq 100); do
    [ -z "$(squeue --noheader 2> /dev/null)" ] && break
    sleep 0.2
  done
  for file in "$folder"/slurmd_node1.pid "$folder"/slurmd_node2.pid "$folder"/slurmctld.pid "$folder"/munged.pid; do
    end "$file"
  done
  hosts=$(grep -v "$mark" /etc/hosts || true)
  echo "$hosts" > /etc/hosts
}

case $action in
  start) start ;;
  stop) stop ;;
  *) echo "usage: cluster.sh start|stop FOLDER" >&2; exit 2 ;;
esac
