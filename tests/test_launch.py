"""The launch scripts, against stand-ins for gcloud, ssh and Slurm.

A stand-in writes down how it was called. What it answers lies in files: lists
of states and of machines' words, one taken for each question.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
STUB = r"""#!/usr/bin/env bash
printf '%s\0' "${0##*/}" "$@" >> CALLS
printf '\1' >> CALLS
next() {
  sed -n 1p "ANSWERS/$1"
  [ "$(wc -l < "ANSWERS/$1")" -lt 2 ] || sed -i 1d "ANSWERS/$1"
}
[ ! -e "ANSWERS/fails" ] || case "${0##*/} $*" in
  *$(cat ANSWERS/fails)*) echo "RESOURCE_EXHAUSTED: quota" >&2; exit 1 ;;
esac
case "${0##*/} $*" in
  gcloud*' describe '*)
    state=$(next states)
    case $state in
      NOT_FOUND | PERMISSION_DENIED) echo "ERROR: $state: no" >&2; exit 1 ;;
    esac
    echo "$state" ;;
  gcloud*'supervise.sh status')
    next runs | tr , '\n' | sed 's/^/psp_jax run on t1v-0: /' ;;
  'gcloud storage ls '*)
    if [ -e ANSWERS/unreadable ]; then
      echo 'ERROR: 403: no access' >&2; exit 1
    elif [ ! -e ANSWERS/bucket ]; then
      echo 'ERROR: One or more URLs matched no objects.' >&2; exit 1
    fi ;;
  'gcloud storage rsync '*)
    from=${*: -2:1} to=${*: -1}
    mkdir -p "${to/gs:\/\/b\/r/ANSWERS/bucket}"
    cp -R "${from/gs:\/\/b\/r/ANSWERS/bucket}/." \
      "${to/gs:\/\/b\/r/ANSWERS/bucket}" ;;
  srun*) exit "$(cat ANSWERS/srun)" ;;
esac
"""
NAMES = ("gcloud", "ssh", "scp", "sbatch", "srun", "scontrol", "tar")
RUN = ["--config=configs/ade20k.py", "--workdir=runs/a b",
       "--config.eval.scales=(0.5, 1.0)", "--config.published=it's \"$HOME\""]


@pytest.fixture
def launch(tmp_path):
  """A function (script, words, ...) -> what a launch script did.

  The result has `calls`, of the stand-ins; `launch.answers` is their folder.
  """
  bin_, answers, calls = (tmp_path / n for n in ("bin", "answers", "calls"))
  bin_.mkdir()
  answers.mkdir()
  for name in NAMES:
    (bin_ / name).write_text(STUB.replace("CALLS", str(calls)).replace(
        "ANSWERS", str(answers)))
    (bin_ / name).chmod(0o755)
  (answers / "states").write_text("ACTIVE\n")
  (answers / "runs").write_text("running\n")
  (answers / "srun").write_text("0")
  # A user's own settings would be taken for flags.
  clean = {k: v for k, v in os.environ.items() if k not in (
      "TPU_NAME", "ZONE", "TYPE", "RUNTIME", "PROJECT", "SPOT", "SYNC",
      "SETUP", "HOSTS", "FOLDER", "SLURM_JOB_ID")}
  clean |= {"PATH": f"{bin_}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "XDG_STATE_HOME": str(tmp_path / "state")}

  def run(script, *words, stdin="", cwd=tmp_path, **environment):
    calls.unlink(missing_ok=True)
    path = script if "/" in str(script) else LAUNCH / script
    done = subprocess.run(
        [path, *words], env=clean | environment, input=stdin, cwd=cwd,
        capture_output=True, text=True, timeout=120)
    done.calls = recorded(calls)
    return done

  run.answers, run.bin, run.calls = answers, bin_, calls
  return run


def recorded(path):
  if not path.exists():
    return []
  return [call.split("\0")[:-1] for call in path.read_text().split("\1")[:-1]]


def printed(done):
  """The calls that a dry run announces."""
  calls = [shlex.split(line) for line in done.stdout.splitlines()]
  return [call for call in calls if call[0] in NAMES]


def kinds(calls):
  """describe, create, scp, ...; an ssh by what it is to do."""
  def kind(call):
    if call[4] != "ssh":
      return call[4]
    command = next(w for w in call if w.startswith("--command="))
    return next(w for w in ("install", "status", "start") if w in command)
  return [kind(call) for call in calls if call[0] == "gcloud"]


TPU = ["--name=n", "--zone=us-west4-a"]
TYPE = ["--type=v5litepod-8"]


@pytest.mark.parametrize("script, words, count", [
    ("tpu_vm.sh", ["create", *TPU, *TYPE, "--spot", "--project=my p"], 2),
    ("tpu_vm.sh", ["install", *TPU], 3),
    ("tpu_vm.sh", ["run", *TPU, *TYPE, "--sync=gs://b/a b",
                   "--setup=echo 'x  y'", "--", *RUN], 1),
    ("tpu_vm.sh", ["status", *TPU], 2),
    ("tpu_vm.sh", ["logs", *TPU, "--worker=1"], 1),
    ("tpu_vm.sh", ["tensorboard", *TPU, "--port=7007"], 1),
    ("tpu_vm.sh", ["stop", *TPU], 1),
    ("tpu_vm.sh", ["fetch", *TPU, "--from=runs/a b", "--to=my runs"], 1),
    ("tpu_vm.sh", ["delete", *TPU], 1),
    ("gpu_box.sh", ["install", "--hosts=u@one,two"], 10),
    ("gpu_box.sh", ["run", "--hosts=u@one,two", "--", *RUN], 2),
    ("gpu_box.sh", ["run", "--hosts=one", "--setup=a  b", "--", *RUN], 1),
    ("gpu_box.sh", ["status", "--hosts=one,two"], 2),
    ("gpu_box.sh", ["logs", "--hosts=one,two", "--host=two"], 1),
    ("gpu_box.sh", ["stop", "--hosts=one,two"], 2),
    ("slurm.sh", ["submit", "--time=1:00:00", "--nodes=2",
                  "--gpus_per_node=4", "--partition=a b", "--account=c",
                  "--sbatch=--mem=0", "--", *RUN], 1),
    ("slurm.sh", ["job", "--", *RUN], 1),
], ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else "")
def test_a_dry_run_prints_the_calls_and_makes_none(script, words, count,
                                                   launch):
  environment = {"SLURM_JOB_ID": "7"} if script == "slurm.sh" else {}
  split = words.index("--") if "--" in words else len(words)
  flags = ["--yes"] if script == "tpu_vm.sh" else []
  dry = launch(script, *words[:split], "--dry_run", *words[split:],
               **environment)
  real = launch(script, *words[:split], *flags, *words[split:], **environment)
  assert dry.returncode == real.returncode == 0, dry.stderr + real.stderr
  assert not dry.calls
  assert printed(dry) == real.calls
  assert len(real.calls) == count


def test_create_asks_for_what_the_flags_say(launch):
  call = launch("tpu_vm.sh", "create", *TPU, *TYPE, "--yes").calls[0]
  assert call[:6] == ["gcloud", "compute", "tpus", "queued-resources",
                      "create", "n"]
  assert set(call[6:]) == {"--zone=us-west4-a", "--node-id=n",
                           "--accelerator-type=v5litepod-8",
                           "--runtime-version=v2-alpha-tpuv5-lite"}
  call = launch("tpu_vm.sh", "create", "--yes", TPU_NAME="m", ZONE="z",
                TYPE="v4-32", SPOT="1", PROJECT="p").calls[0]
  assert set(call[5:]) == {
      "m", "--zone=z", "--project=p", "--node-id=m", "--spot",
      "--accelerator-type=v4-32", "--runtime-version=tpu-ubuntu2204-base"}
  for type_, runtime in (("v6e-8", "v2-alpha-tpuv6e"),
                         ("v5p-8", "v2-alpha-tpuv5")):
    call = launch("tpu_vm.sh", "create", *TPU, f"--type={type_}",
                  "--yes").calls[0]
    assert f"--runtime-version={runtime}" in call


@pytest.mark.parametrize("script, words, told", [
    ("tpu_vm.sh", ["create", "--type=v4-8"], "--zone"),
    ("tpu_vm.sh", ["create", "--zone=z"], "--type"),
    ("tpu_vm.sh", ["create", "--zone=z", "--type=v4"], "--type=v4"),
    ("tpu_vm.sh", ["create", "--zone=z", "--type=v4-8x"], "--type=v4-8x"),
    ("tpu_vm.sh", ["create", "--zone=z", "--type=v9-8"], "--runtime"),
    ("tpu_vm.sh", ["create", "--zone", "z"], "--zone: no such flag, or no val"),
    ("tpu_vm.sh", ["create", "--zoen=z"], "--zoen=z"),
    ("tpu_vm.sh", ["destroy", "--zone=z"], "'destroy'"),
    ("tpu_vm.sh", ["run", "--zone=z"], "--config="),
    ("tpu_vm.sh", ["run", "--zone=z", "--", "--workdir=gs://b/r"],
     "--workdir: gs://b/r is not a folder"),
    ("tpu_vm.sh", ["run", "--zone=z", "--", "--config.data.data_dir=gs://b"],
     "--config.data.data_dir: gs://b is not"),
    ("tpu_vm.sh", ["run", "--zone=z", *TYPE, "--sync=b/r", "--", "--workdir=w"],
     "--sync=b/r"),
    ("tpu_vm.sh", ["run", "--zone=z", *TYPE, "--sync=gs://b/r", "--",
                   "--config=c"], "--workdir"),
    ("tpu_vm.sh", ["run", "--zone=z", "--type=v4-32", "--sync=gs://b/r", "--",
                   "--workdir=w"], "--sync: v4-32 is several machines"),
    ("tpu_vm.sh", ["run", "--zone=z", "--sync=gs://b/r", "--", "--workdir=w"],
     "--type"),
    ("tpu_vm.sh", ["fetch", "--zone=z"], "--from"),
    ("gpu_box.sh", ["run"], "--config="),
    ("gpu_box.sh", ["run", "--hosts=a,,b", "--", "--workdir=w"], "--hosts=a,,"),
    ("gpu_box.sh", ["run", "--hosts=a,-oProxyCommand=x", "--", "--workdir=w"],
     "--hosts"),
    ("gpu_box.sh", ["run", "--hosts=a,b", "--", "--config=c"], "--workdir"),
    ("gpu_box.sh", ["run", "--coordinator_port=x", "--", "--config=c"],
     "--coordinator_port=x"),
    ("slurm.sh", ["submit", "--", "--config=c"], "--time"),
    ("slurm.sh", ["submit", "--time=1", "--nodes=two", "--", "--config=c"],
     "--nodes=two"),
    ("slurm.sh", ["submit", "--time=1", "--gpus_per_node=0", "--",
                  "--config=c"], "--gpus_per_node=0"),
    ("slurm.sh", ["submit", "--time=1"], "--config="),
    ("slurm.sh", ["job", "--", "--config=c"], "SLURM_JOB_ID"),
    ("install.sh", ["gpu"], "'gpu'"),
    ("supervise.sh", ["start"], "--"),
    ("supervise.sh", ["start", "--sync=gs://b/r", "--", "true"], "--workdir"),
    ("supervise.sh", ["start", "--sync_seconds=x", "--", "true"],
     "--sync_seconds=x"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_mistakes_name_the_flag_and_call_nothing(script, words, told, launch):
  done = launch(script, *words)
  assert done.returncode == 2
  (last,) = done.stderr.splitlines()
  assert last.startswith("error: ") and told in last
  assert not done.calls


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gpu_box.sh", "slurm.sh",
                                    "supervise.sh", "install.sh"])
def test_help(script, launch):
  done = launch(script, "--help")
  assert done.returncode == 0 and not done.calls
  assert f"launch/{script} " in done.stdout and "#!" not in done.stdout
  assert "set -euo" not in done.stdout
  assert launch(script).returncode == 2


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_what_costs_or_destroys_is_asked_first(verb, launch):
  words = [verb, *TPU, *(TYPE if verb == "create" else [])]
  for answer, code in (("n\n", 1), ("\n", 1), ("", 2)):
    done = launch("tpu_vm.sh", *words, stdin=answer)
    assert done.returncode == code and not done.calls
  assert "--yes" in done.stderr  # Nobody was there.
  if verb == "create":
    assert "costs money" in done.stderr
    assert "tpu_vm.sh delete --name=n --zone=us-west4-a" in done.stderr
  assert verb in kinds(launch("tpu_vm.sh", *words, stdin="y\n").calls)


def test_create_waits_in_the_queue(launch):
  (launch.answers / "states").write_text(
      "WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
  done = launch("tpu_vm.sh", "create", *TPU, *TYPE, "--yes", "--poll=0")
  assert done.returncode == 0
  assert kinds(done.calls) == ["create", *["describe"] * 3]

  (launch.answers / "states").write_text("PROVISIONING\nFAILED\n")
  done = launch("tpu_vm.sh", "create", *TPU, *TYPE, "--yes", "--poll=0")
  assert done.returncode == 1 and "n is FAILED" in done.stderr


ANEW = ["create", "describe", "scp", "install", "start"]


@pytest.mark.parametrize("states, runs, code, expected", [
    ("SUSPENDED ACTIVE", "", 0, ["describe", "delete", *ANEW]),
    ("FAILED ACTIVE", "", 0, ["describe", "delete", *ANEW]),
    ("NOT_FOUND ACTIVE", "", 0, ["describe", *ANEW]),
    ("PROVISIONING ACTIVE", "", 0, ["describe", *ANEW[1:]]),
    ("SUSPENDING", "", 0, ["describe"]),
    ("PERMISSION_DENIED", "", 1, ["describe"]),
    ("ACTIVE", "ended 75", 0, ["describe", "status", "start"]),
    ("ACTIVE", "ended 75,ended 75", 0, ["describe", "status", "start"]),
    ("ACTIVE", "cut off", 0, ["describe", "status", "start"]),
    ("ACTIVE", "nothing", 0, ["describe", "status", "start"]),
    ("ACTIVE", "running", 0, ["describe", "status"]),
    ("ACTIVE", "ended 75,running", 0, ["describe", "status"]),
    ("ACTIVE", "ended 0,ended 0", 0, ["describe", "status"]),
    ("ACTIVE", "ended 2", 1, ["describe", "status"]),
    ("ACTIVE", "ended 75,ended 70", 1, ["describe", "status"]),
])
def test_resume(states, runs, code, expected, launch):
  (launch.answers / "states").write_text(states.replace(" ", "\n") + "\n")
  (launch.answers / "runs").write_text(runs + "\n")
  words = [*TPU, *TYPE, "--spot", "--poll=0"]
  done = launch("tpu_vm.sh", "resume", *words, "--yes", "--", *RUN)
  assert done.returncode == code, done.stderr
  assert kinds(done.calls) == expected
  if "create" in expected:
    create = next(c for c in done.calls if c[4] == "create")
    assert "--spot" in create and "--accelerator-type=v5litepod-8" in create
  if "start" in expected:
    again = launch("tpu_vm.sh", "run", *words, "--", *RUN).calls
    assert done.calls[-1:] == again


@pytest.mark.parametrize("states, runs", [
    ("SUSPENDED", ""), ("ACTIVE", "ended 75"), ("ACTIVE", "running")])
def test_resume_says_beforehand_what_it_would_do(states, runs, launch):
  def answer():
    (launch.answers / "states").write_text(f"{states}\nACTIVE\n")
    (launch.answers / "runs").write_text(f"{runs}\n")

  words = ["resume", *TPU, *TYPE, "--yes", "--poll=0"]
  answer()
  dry = launch("tpu_vm.sh", *words, "--dry_run", "--", *RUN)
  assert set(kinds(dry.calls)) <= {"describe", "status"}  # Mere questions.
  answer()
  assert printed(dry) == launch("tpu_vm.sh", *words, "--", *RUN).calls


def test_resume_asks_before_it_costs(launch):
  (launch.answers / "states").write_text("SUSPENDED\nACTIVE\n")
  done = launch("tpu_vm.sh", "resume", *TPU, *TYPE, "--", *RUN, stdin="n\n")
  assert done.returncode == 1 and kinds(done.calls) == ["describe"]
  assert "costs money" in done.stderr


def test_what_fails_on_the_way_ends_it(launch):
  (launch.answers / "states").write_text("SUSPENDED\nACTIVE\n")
  for fails, last in ((" delete ", "delete"), (" create ", "create"),
                      (" scp ", "scp"), ("install.sh", "install")):
    (launch.answers / "states").write_text("SUSPENDED\nACTIVE\n")
    (launch.answers / "fails").write_text(fails)
    done = launch("tpu_vm.sh", "resume", *TPU, *TYPE, "--yes", "--watch",
                  "--poll=0", "--", *RUN)
    assert done.returncode == 1 and kinds(done.calls)[-1] == last
    assert "quota" in done.stderr
    assert ("costs money once" in done.stderr) == (last != "delete")


def test_watch_goes_on_until_the_run_is_done(launch):
  (launch.answers / "states").write_text(
      "ACTIVE\nSUSPENDING\nSUSPENDED\nACTIVE\n")
  (launch.answers / "runs").write_text("running\nended 75\nended 0\n")
  done = launch("tpu_vm.sh", "resume", *TPU, *TYPE, "--yes", "--watch",
                "--poll=0", "--", *RUN)
  assert done.returncode == 0, done.stderr
  assert kinds(done.calls) == [
      "describe", "status",  # Running,
      "describe",  # being preempted,
      "describe", "delete", *ANEW,  # preempted,
      "describe", "status", "start",  # told to stop,
      "describe", "status"]  # and done.


def test_words_reach_the_machine_as_they_are(launch, tmp_path):
  folder = tmp_path / "psp_jax/launch"
  folder.mkdir(parents=True)
  shutil.copy(launch.bin / "tar", folder / "supervise.sh")
  expected = ["supervise.sh", "start", "--setup=echo 'x  y'", "--",
              ".venv/bin/python", "-m", "psp_jax.main", *RUN]
  call = launch("tpu_vm.sh", "run", *TPU, "--setup=echo 'x  y'", "--",
                *RUN).calls[0]
  assert "--worker=all" in call
  command = call[-1].removeprefix("--command=")
  launch.calls.unlink()
  subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
  assert recorded(launch.calls) == [expected]

  calls = launch("gpu_box.sh", "run", "--hosts=u@one,two",
                 "--setup=echo 'x  y'", "--", *RUN).calls
  assert [call[:2] for call in calls] == [["ssh", "u@one"], ["ssh", "two"]]
  for i, (_, _, command) in enumerate(calls):
    words = shlex.split(command)
    assert words[:4] == ["env", "JAX_COORDINATOR_ADDRESS=one:8476",
                         "JAX_NUM_PROCESSES=2", f"JAX_PROCESS_ID={i}"]
    launch.calls.unlink(missing_ok=True)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert recorded(launch.calls) == [expected]

  done = launch("gpu_box.sh", "run", "--folder=psp_jax", "--", *RUN)
  assert done.calls == [[*expected[:2], *expected[3:]]]  # This machine.


def test_slurm_queues_again_after_75_only(launch):
  call = launch("slurm.sh", "submit", "--time=2:00", "--gpus_per_node=4",
                "--", *RUN).calls[0]
  assert {"--requeue", "--signal=TERM@120", "--open-mode=append",
          "--ntasks-per-node=4", "--gpus-per-node=4", "--time=2:00",
          f"--chdir={ROOT}"} <= set(call)
  script = call.index(str(LAUNCH / "slurm.sh"))
  inside = call[script + 1:]
  # Slurm runs a copy from another folder.
  copy = launch.answers / "slurm_script"
  shutil.copy(LAUNCH / "slurm.sh", copy)
  for code in (0, 1, 2, 75):
    (launch.answers / "srun").write_text(str(code))
    done = launch(str(copy), *inside, SLURM_JOB_ID="7",
                  PSP_JAX_FOLDER=str(ROOT))
    assert done.returncode == code
    assert done.calls[0][0] == "srun" and done.calls[0][-len(RUN):] == RUN
    assert done.calls[1:] == ([["scontrol", "requeue", "7"]] if code == 75
                              else [])


# ---- The script on the machine, for real.

TOLD = r"""
count=$(($(cat count 2> /dev/null || echo 0) + 1))
echo $count > count
trap 'echo saved; exit 75' TERM
echo "run $count with $1"
"""


@pytest.fixture
def machine(launch, tmp_path):
  """A function (verb, words) -> done, of a copy's supervise.sh."""
  home = tmp_path / "home"
  shutil.copytree(LAUNCH, home / "launch")

  def run(verb, *words, body="", flags=()):
    if verb != "start":
      return launch(str(home / "launch/supervise.sh"), verb, *words)
    (home / "command.sh").write_text(TOLD + body)
    return launch(str(home / "launch/supervise.sh"), "start",
                  "--again_seconds=0", *flags, "--", "bash", "command.sh",
                  "a  b", *words)

  def until(end, seconds=60):
    deadline = time.monotonic() + seconds
    while (found := run("status").stdout.strip().partition(": ")[2]) != end:
      assert time.monotonic() < deadline, (found, log())
      time.sleep(0.05)

  def log():
    return "".join(p.read_text() for p in tmp_path.glob("state/*/*/log.txt"))

  def go_down():
    # Again until none is left: one pkill misses what is forked meanwhile.
    for path in tmp_path.glob("state/*/*/pid"):
      while subprocess.run(["pkill", "-KILL", "-s", path.read_text().strip()]
                           ).returncode == 0:
        time.sleep(0.05)

  run.until, run.log, run.home, run.go_down = until, log, home, go_down
  yield run
  go_down()


def test_a_command_goes_on_after_75(machine):
  machine.until("nothing")
  done = machine("start", body="[ $count -lt 3 ] || exit 0; exit 75")
  assert done.returncode == 0, done.stderr
  machine.until("ended 0")
  log = machine.log()
  assert [f"run {i} with a  b" in log for i in (1, 2, 3, 4)] == [
      True, True, True, False]


def test_other_codes_end_it(machine):
  machine("start", body="exit 2")
  machine.until("ended 2")
  assert "run 2" not in machine.log()
  machine("start", body="exit 134")  # Started again, it starts again.
  machine.until("ended 134")
  assert "run 2" in machine.log()


def test_told_to_stop_it_saves_and_stays_stopped(machine):
  forever = "while :; do sleep 0.05; done"
  machine("start", body=forever)
  machine.until("running")
  second = machine("start", body=forever)
  assert second.returncode == 2 and "is going on here already" in second.stderr
  deadline = time.monotonic() + 60
  while "run 1" not in machine.log():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  assert "told to stop" in machine("stop").stdout
  machine.until("ended 75")
  assert "saved" in machine.log() and "run 2" not in machine.log()
  assert "nothing runs" in machine("stop").stdout


def test_a_machine_that_went_down_is_told(machine):
  machine("start", body="while :; do sleep 0.05; done")
  machine.until("running")
  deadline = time.monotonic() + 60
  while "run 1" not in machine.log():  # Before, there may be no session yet.
    assert time.monotonic() < deadline
    time.sleep(0.05)
  machine.go_down()
  machine.until("cut off")


def test_setup_comes_first(machine):
  machine("start", body="cat made; exit 0",
          flags=["--setup=echo 'x  y' > made"])
  machine.until("ended 0")
  assert "x  y" in machine.log()
  machine("start", body="exit 0", flags=["--setup=false"])
  machine.until("ended 2")
  assert "run 2" not in machine.log()
  assert "--setup: the command failed" in machine.log()


def test_told_to_stop_before_it_began_it_never_does(machine):
  machine("start", flags=["--setup=echo waiting; sleep 2"], body="exit 0")
  deadline = time.monotonic() + 60
  while "waiting" not in machine.log():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  machine("stop")
  machine.until("ended 75")
  assert "run 1" not in machine.log()


SYNC = ["--sync=gs://b/r"]


def test_a_new_run_is_copied_to_the_bucket(machine, launch):
  machine("start", "--workdir=runs/x", flags=SYNC,
          body="echo $count > runs/x/step; exit 0")
  deadline = time.monotonic() + 60
  while "ended with 0" not in machine.log():
    assert time.monotonic() < deadline, machine.log()
    time.sleep(0.05)
  look, *copies = recorded(launch.calls)
  assert look == ["gcloud", "storage", "ls", "gs://b/r"]
  assert copies == 2 * [[
      "gcloud", "storage", "rsync", "--recursive",
      "--delete-unmatched-destination-objects",
      r"--exclude=.*orbax-checkpoint-tmp.*|^lock$|.*\.part$", "runs/x",
      "gs://b/r"]]
  assert (launch.answers / "bucket/step").read_text() == "1\n"


def test_a_new_machine_fetches_the_run_first(machine, launch):
  (launch.answers / "bucket").mkdir()
  (launch.answers / "bucket/step").write_text("41\n")
  machine("start", "--workdir=runs/x", flags=SYNC,
          body="echo $(($(cat runs/x/step) + 1)) > runs/x/step; exit 0")
  machine.until("ended 0")
  assert (launch.answers / "bucket/step").read_text() == "42\n"
  # On the same machine its own folder is the newer one.
  (launch.answers / "bucket/step").write_text("7\n")
  machine("start", "--workdir=runs/x", flags=SYNC, body="exit 0")
  machine.until("ended 0")
  assert (machine.home / "runs/x/step").read_text() == "42\n"
  assert [p.name for p in machine.home.glob("runs/*/*")] == ["step"]


def test_a_bucket_that_cannot_be_read_starts_nothing_anew(machine, launch):
  (launch.answers / "unreadable").touch()
  machine("start", "--workdir=runs/x", flags=SYNC, body="exit 0")
  machine.until("ended 2")
  assert "cannot be read: ERROR: 403" in machine.log()
  assert "run 1" not in machine.log()
  assert not (machine.home / "runs").exists()


def test_a_bucket_is_kept_up_to_date(machine, launch):
  machine("start", "--workdir=runs/x", flags=[*SYNC, "--sync_seconds=1"],
          body="touch runs/x/early; while [ ! -e end ]; do sleep 0.05; done; "
          "exit 0")
  deadline = time.monotonic() + 60
  while not (launch.answers / "bucket/early").exists():
    assert time.monotonic() < deadline, machine.log()
    time.sleep(0.05)
  machine.until("running")
  (machine.home / "end").touch()
  machine.until("ended 0")


def test_install(launch, tmp_path):
  home = tmp_path / "home"
  shutil.copytree(LAUNCH, home / "launch")
  uv = launch.bin / "uv"
  uv.write_text((launch.bin / "tar").read_text() + f"""
if [ "$1" = venv ]; then
  mkdir -p .venv/bin
  cp {launch.bin}/tar .venv/bin/python
fi
""")
  uv.chmod(0o755)
  venv, pip = ["uv", "venv", "--python", "3.12", ".venv"], [
      "uv", "pip", "install", "--quiet", "--python", ".venv/bin/python", "-e"]
  script = str(home / "launch/install.sh")
  done = launch(script, "tpu")
  assert done.returncode == 0, done.stderr
  assert done.calls[:2] == [venv, [*pip, ".[tpu]"]]
  assert done.calls[2][:2] == ["python", "-c"]
  assert launch(script, "cuda").calls[0] == [*pip, ".[cuda]"]


# ---- The files.


def test_shellcheck_finds_nothing():
  shellcheck = shutil.which("shellcheck", path=os.pathsep.join(
      [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]))
  if shellcheck is None:
    pytest.skip("needs shellcheck: pip install 'psp_jax[test]'")
  scripts = sorted(LAUNCH.glob("*.sh"))
  assert len(scripts) == 6
  done = subprocess.run([shellcheck, "-x", "-P", LAUNCH, *scripts],
                        capture_output=True, text=True)
  assert not done.stdout and done.returncode == 0, done.stdout
  for script in scripts:
    assert script.name == "common.sh" or "set -euo pipefail" in (
        script.read_text())


def test_the_kubernetes_job():
  kubernetes_validate = pytest.importorskip("kubernetes_validate")
  yaml = pytest.importorskip("yaml")
  claim, job = yaml.safe_load_all((LAUNCH / "gke_job.yaml").read_text())
  for document in (claim, job):
    kubernetes_validate.validate(
        document, kubernetes_validate.latest_version(), strict=True)
  spec = job["spec"]
  pod = spec["template"]["spec"]
  (container,) = pod["containers"]
  codes = {code: rule["action"]
           for rule in spec["podFailurePolicy"]["rules"]
           if "onExitCodes" in rule
           for code in rule["onExitCodes"]["values"]}
  assert codes == {75: "Ignore", 2: "FailJob"}
  assert pod["restartPolicy"] == "Never"  # The API server refuses others.
  assert (pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
          == claim["metadata"]["name"])
  (mount,) = container["volumeMounts"]
  flags = dict(word[2:].split("=") for word in container["args"])
  assert (ROOT / flags.pop("config")).is_file()
  assert sorted(flags) == ["compilation_cache", "config.data.data_dir",
                           "workdir"]
  assert all(v.startswith(mount["mountPath"]) for v in flags.values())
