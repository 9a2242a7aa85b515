//! Daemon and monitors are killed at random under load; afterwards the losses are counted.
//!
//! Several clients live pods as a kubelet does: they ask again while nobody answers. What they saw
//! is compared with what their containers did: every code that the workload chose, every line that
//! it wrote. A run that fails names its seed; `CRIA_TEST_SEED` repeats its choices.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cria_proto::*;
use harness::cri::{Answer, Container, Pod};
use harness::node::monitors;
use harness::random::Random;
use harness::scene::{SOON, Scene};
use harness::{Cri, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::{Code, Status};

const CLIENTS: u64 = 4;
const LOAD: Duration = Duration::from_secs(20);

/// A call that is cut off is made again for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// More pods than the clients can live in the time.
const PODS: usize = 400;

#[test]
fn a_daemon_killed_at_random_under_load_loses_no_code_no_line_and_leaks_nothing() {
    let mut scene = Scene::new();
    let load = Load::new(&scene, Killed::Daemon);
    let mut random = load.random(0);
    thread::scope(|scope| {
        let clients = load.clients(scope);
        while !load.is_over() {
            wait::after(Duration::from_millis(random.below(1500)));
            load.changes.fetch_add(1, Ordering::SeqCst);
            scene.kill9();
            wait::after(Duration::from_millis(random.below(300)));
            scene.resume();
            load.changes.fetch_add(1, Ordering::SeqCst);
        }
        clients.into_iter().for_each(|client| client.join().expect("no panic"));
    });
    load.assert_well();
    scene.assert_nothing_is_left_soon();
}

#[test]
fn monitors_killed_at_random_under_load_cost_no_code_no_torn_line_and_leak_nothing() {
    let mut scene = Scene::new();
    let load = Load::new(&scene, Killed::Monitors);
    let mut random = load.random(0);
    thread::scope(|scope| {
        let clients = load.clients(scope);
        while !load.is_over() {
            wait::after(Duration::from_millis(random.below(200)));
            let monitors = monitors_of_containers(&scene);
            if monitors.is_empty() {
                continue;
            }
            let choice = random.below(monitors.len().try_into().expect("few"));
            let victim = monitors[usize::try_from(choice).expect("few")];
            load.changes.fetch_add(1, Ordering::SeqCst);
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(victim.try_into().expect("pids fit")), Signal::SIGKILL);
        }
        clients.into_iter().for_each(|client| client.join().expect("no panic"));
    });
    load.assert_well();
    scene.assert_nothing_is_left_soon();
}

/// Not those that serve a pod: they are part of it, and die with it.
fn monitors_of_containers(scene: &Scene) -> Vec<u32> {
    let mut found = monitors(scene.place());
    found.retain(|pid| {
        let command = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).nth(1) == Some(b"container")
    });
    found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Killed {
    Daemon,
    Monitors,
}

/// What the clients share.
struct Load {
    cri: Cri,
    killed: Killed,
    seed: u64,
    end: Instant,
    /// Given to whoever runs a pod next.
    pods: Mutex<Vec<PodSandboxConfig>>,
    image: ContainerConfig,
    /// Counts kills and starts: an error between two equal counts has no excuse.
    changes: AtomicU64,
    broken: AtomicBool,
    faults: Mutex<Vec<String>>,
    lives: AtomicU64,
}

impl Load {
    fn new(scene: &Scene, killed: Killed) -> Self {
        let name = |number: usize| format!("load{number}");
        // Some on the pod network; it takes longer to make.
        let pods = (0..PODS).map(|number| match number % 4 {
            0 => scene.pod(&name(number)),
            _ => scene.host_pod(&name(number)),
        });
        Self {
            cri: scene.cri().clone(),
            killed,
            seed: Random::seed(),
            end: Instant::now() + LOAD,
            pods: Mutex::new(pods.collect()),
            image: scene.container("load", &[]),
            changes: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            faults: Mutex::default(),
            lives: AtomicU64::new(0),
        }
    }

    fn random(&self, stream: u64) -> Random {
        Random::new(self.seed.wrapping_add(stream))
    }

    /// A slow machine gets longer, until something has happened at all.
    fn is_over(&self) -> bool {
        let end = match self.lives.load(Ordering::SeqCst) > CLIENTS {
            true => self.end,
            false => self.end + Duration::from_secs(160),
        };
        Instant::now() >= end || self.broken.load(Ordering::SeqCst)
    }

    fn clients<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
    ) -> Vec<thread::ScopedJoinHandle<'scope, ()>> {
        (1..=CLIENTS).map(|number| scope.spawn(move || self.client(number))).collect()
    }

    fn client(&self, number: u64) {
        let mut random = self.random(number);
        while !self.is_over() {
            let Some(pod) = self.pods.lock().expect("no panic").pop() else { return };
            if let Err(fault) = self.live(pod, &mut random) {
                self.faults.lock().expect("no panic").push(fault);
                self.broken.store(true, Ordering::SeqCst);
            }
            self.lives.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn assert_well(&self) {
        let faults = self.faults.lock().expect("no panic");
        assert!(faults.is_empty(), "seed {}: {faults:#?}", self.seed);
        let lives = self.lives.load(Ordering::SeqCst);
        assert!(lives > CLIENTS, "seed {}: hardly a pod lived: {lives}", self.seed);
    }

    /// The life of one pod; what it answers is what was wrong.
    fn live(&self, config: PodSandboxConfig, random: &mut Random) -> Result<(), String> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let id = self.ask("RunPodSandbox", || self.cri.run_pod_sandbox(request.clone()))?;
        let pod = Pod { cri: self.cri.clone(), id: id.pod_sandbox_id, config };
        for attempt in 0..=random.below(2) {
            self.live_container(&pod, u32::try_from(attempt).expect("small"), random)?;
        }
        self.ask("StopPodSandbox", || pod.stop())?;
        self.ask("RemovePodSandbox", || pod.remove())
    }

    fn live_container(&self, pod: &Pod, attempt: u32, random: &mut Random) -> Result<(), String> {
        let work = Work::choose(random);
        let mut config = self.image.clone();
        config.command = vec!["sh".to_owned(), "-c".to_owned(), work.script()];
        config.metadata = Some(ContainerMetadata { name: "load".to_owned(), attempt });
        config.log_path = format!("load/{attempt}.log");
        let container = self.ask("CreateContainer", || pod.create(config.clone()))?;
        self.start(&container)?;
        for _ in 0..random.below(3) {
            self.exec(&container);
        }
        if work.is_stopped {
            self.await_line(&container)?;
            self.ask("StopContainer", || container.stop(SOON))?;
        }
        let status = self.await_exit(&container)?;
        self.judge(&work, &status)?;
        self.ask("RemoveContainer", || container.remove())
    }

    /// A start that was cut off may have been made: then it is not made again.
    fn start(&self, container: &Container) -> Result<(), String> {
        let begun = |status: &Status| {
            status.code() == Code::FailedPrecondition
                && ["running already", "exited"].iter().any(|it| status.message().contains(it))
        };
        let mut cut_off = false;
        self.ask("StartContainer", || match container.start() {
            Err(status) if cut_off && begun(&status) => Ok(()),
            // The monitor was killed in the middle: the container has ended with that.
            Err(status) if status.code() == Code::Internal && self.killed == Killed::Monitors => {
                Ok(())
            }
            answer => {
                cut_off |= answer.is_err();
                answer
            }
        })
    }

    /// Its failure is a matter of the moment: the container may have ended, or the monitor.
    fn exec(&self, container: &Container) {
        if let Ok(output) = container.exec(&["sh", "-c", "echo out; exit 3"])
            // 137: it was killed with the container.
            && output.exit_code != 137
            && (output.stdout.as_str(), output.exit_code) != ("out\n", 3)
        {
            self.faults.lock().expect("no panic").push(format!("exec: {output}"));
        }
    }

    /// A shell that has written something has set its trap.
    fn await_line(&self, container: &Container) -> Result<(), String> {
        let status = self.status(container)?;
        let (path, begun) = (status.log_path, Instant::now());
        while fs_err::read(&path).map_or(0, |log| log.len()) == 0 {
            if self.status(container)?.state() == ContainerState::ContainerExited {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} writes nothing", container.id));
            }
            wait::after(Duration::from_millis(5));
        }
        Ok(())
    }

    fn await_exit(&self, container: &Container) -> Result<ContainerStatus, String> {
        let begun = Instant::now();
        loop {
            let status = self.status(container)?;
            match status.state() {
                ContainerState::ContainerExited => return Ok(status),
                ContainerState::ContainerCreated if begun.elapsed() > SOON => {
                    return Err(format!("started, and only created: {status:?}"));
                }
                _ if begun.elapsed() > PATIENCE => return Err(format!("runs on: {status:?}")),
                _ => wait::after(Duration::from_millis(10)),
            }
        }
    }

    fn status(&self, container: &Container) -> Result<ContainerStatus, String> {
        let request =
            || ContainerStatusRequest { container_id: container.id.clone(), ..Default::default() };
        let answer = self.ask("ContainerStatus", || self.cri.container_status(request()))?;
        answer.status.ok_or_else(|| "no status".to_owned())
    }

    /// The code is the one that the workload chose, and its log is whole.
    fn judge(&self, work: &Work, status: &ContainerStatus) -> Result<(), String> {
        let undone = status.reason == "StartError" && self.killed == Killed::Monitors;
        if undone {
            return Ok(());
        }
        if status.exit_code != work.code {
            return Err(format!("chose {}, and it is told {status:?}", work.code));
        }
        let log = fs_err::read_to_string(&status.log_path).map_err(|error| error.to_string())?;
        let numbers: Option<Vec<u64>> = log.lines().map(number).collect();
        let numbers = numbers.ok_or_else(|| format!("a torn line: {log}"))?;
        let whole = match self.killed {
            Killed::Daemon => numbers.iter().zip(0..).all(|(number, at)| *number == at),
            // What was being read when the monitor died is lost, in whole lines.
            Killed::Monitors => numbers.is_sorted_by(|a, b| a < b),
        };
        let complete =
            self.killed == Killed::Monitors || work.is_stopped || numbers.len() == work.lines();
        match whole && complete {
            true => Ok(()),
            false => Err(format!("lines are lost of {}: {log}", work.lines)),
        }
    }

    /// Asks until there is an answer. An error counts unless something was killed meanwhile.
    fn ask<T>(&self, rpc: &str, mut call: impl FnMut() -> Answer<T>) -> Result<T, String> {
        let begun = Instant::now();
        loop {
            let before = self.changes.load(Ordering::SeqCst);
            let status = match call() {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            let excused = self.changes.load(Ordering::SeqCst) != before
                || (before % 2 == 1 && self.killed == Killed::Daemon)
                || self.is_excused(&status);
            if !excused {
                return Err(format!("{rpc}: {status}"));
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{rpc}, after {PATIENCE:?}: {status}"));
            }
            wait::after(Duration::from_millis(20));
        }
    }

    /// A monitor's death may be seen a moment later.
    fn is_excused(&self, status: &Status) -> bool {
        self.killed == Killed::Monitors && status.message().contains("monitor")
    }
}

/// What a container does.
struct Work {
    lines: u64,
    code: i32,
    /// Runs until it is stopped, and ends with its code then.
    is_stopped: bool,
}

impl Work {
    fn choose(random: &mut Random) -> Self {
        let code = i32::try_from(random.below(100)).expect("small") + 1;
        Self { lines: random.below(400), code, is_stopped: random.below(3) == 0 }
    }

    fn lines(&self) -> usize {
        usize::try_from(self.lines).expect("small")
    }

    fn script(&self) -> String {
        let (lines, code) = (self.lines, self.code);
        match self.is_stopped {
            true => format!(
                "trap 'exit {code}' TERM; n=0; while :; do echo line $n; n=$((n+1)); usleep 2000; done"
            ),
            false => format!(
                "n=0; while [ $n -lt {lines} ]; do echo line $n; n=$((n+1)); usleep 1000; done; exit {code}"
            ),
        }
    }
}

fn number(line: &str) -> Option<u64> {
    line.split_once(" stdout F line ")?.1.parse().ok()
}
