//! Code that the tests of the real binary share: a folder for each test, job files, and commands with their output.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub const BINARY: &str = env!("CARGO_BIN_EXE_llink-coord");

/// What a coordinator says before its URL.
pub const LISTENS: &str = "llink-coord listens on ";

/// A folder with a job file, the state and the output.
pub struct Place {
    pub dir: tempfile::TempDir,
}

/// A job that takes seconds.
pub const SMALL: &str = "
name = \"small\"
output = \"out\"
seed = 11

[corpus]
source = \"sample\"
train_pairs = 1200
holdout_pairs = 300
shard_rows = 400

[instructions]
source = \"sample\"
train = 150
validation = 30

[align]
steps = 60
batch = 64
queue = 512
hard_negatives = 32
warmup_steps = 10
learning_rate = 3e-3
checkpoint_every = 20

[evaluate]
benchmark_pairs = 200
";

/// A job with a bundle that takes seconds.
pub const BUNDLED: &str = "
name = \"bundled\"
output = \"out\"
seed = 11

[corpus]
source = \"sample\"
train_pairs = 600
holdout_pairs = 100

[instructions]
source = \"sample\"
train = 120
validation = 20

[align]
steps = 20
batch = 64
queue = 256
hard_negatives = 16
warmup_steps = 4

[instruct]
steps = 12
batch = 8
learning_rate = 2e-3

[evaluate]
benchmark_pairs = 100
answers = 4
max_answer_tokens = 12
";

impl Place {
    pub fn new(job: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self { dir };
        place.write("job.toml", job);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, and the folder that it is in.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_remove("LLINK_COORDINATOR")
            .env_remove("LLINK_STATE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed, and returns its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        String::from_utf8(done(&mut self.command(args)).stdout).unwrap()
    }

    /// Runs a command that must fail with `code`, and returns its output.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        said
    }

    /// Runs a command that must fail with `code` and say all of these words.
    pub fn refuses(&self, code: i32, args: &[&str], words: &[&str]) {
        says_all(&self.fails(code, args), words);
    }

    /// Submits the job to a coordinator, and returns its id.
    pub fn submit_to(&self, url: &str) -> String {
        self.ok(&["submit", "job.toml", "--coordinator", url, "--detach"]).trim().to_owned()
    }

    pub fn start(&self, args: &[&str]) -> Running {
        self.start_with_log(args[0], args)
    }

    /// Starts a process with a log of this name, which further processes of the name continue.
    pub fn start_with_log(&self, name: &str, args: &[&str]) -> Running {
        let log = self.path(&format!("{name}.log"));
        let file = || std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = self.command(args).stdout(file()).stderr(file()).spawn().unwrap();
        Running { child, log }
    }

    /// Starts a coordinator on a free port, with a new log. Returns its URL too.
    pub fn serve(&self, more: &[&str]) -> (Running, String) {
        self.serve_at("127.0.0.1:0", more)
    }

    pub fn serve_at(&self, address: &str, more: &[&str]) -> (Running, String) {
        let _ = std::fs::remove_file(self.path("serve.log"));
        let mut serve = self.start(&[&["serve", "--listen", address], more].concat());
        let url = serve.says(LISTENS);
        (serve, url)
    }

    /// Waits until `list` shows this text, and returns the id of its first job.
    pub fn lists(&self, shown: &str, reach: &[&str]) -> String {
        eventually(shown, || {
            let list = text(&self.run(&[&["list"], reach].concat()));
            list.contains(shown).then(|| list.split_whitespace().next().unwrap().to_owned())
        })
    }

    /// Returns the report of the job, which has the output `out`.
    pub fn report(&self) -> Value {
        json(self.path("out/report.json"))
    }

    /// Returns the first artifact of a stage whose path has this ending.
    pub fn artifact(&self, stage: &str, end: &str) -> PathBuf {
        let found = self.artifacts(&[stage]).into_iter().find(|(path, _)| path.ends_with(end));
        self.path("out").join(found.unwrap().0)
    }

    /// Returns the SHA-256 (by the manifests) of every artifact of the stages, by its path.
    pub fn artifacts(&self, stages: &[&str]) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for stage in stages {
            for entry in std::fs::read_dir(self.path("out").join(stage)).unwrap() {
                let manifest = json(entry.unwrap().path().join("manifest.json"));
                for artifact in manifest["artifacts"].as_array().unwrap() {
                    let field = |name: &str| artifact[name].as_str().unwrap().to_owned();
                    found.push((field("path"), field("sha256")));
                }
            }
        }
        assert!(!found.is_empty());
        found
    }
}

/// A process that is killed when the test ends, however it ends.
pub struct Running {
    pub child: Child,
    pub log: PathBuf,
}

impl Running {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the process has said this, and returns the rest of the line.
    pub fn says(&mut self, said: &str) -> String {
        eventually(said, || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            let log = self.log();
            let (rest, _) = log.split_once(said)?.1.split_once('\n')?;
            Some(rest.to_owned())
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command that must succeed.
pub fn done(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    output
}

/// Asserts that a text has all of these words.
pub fn says_all(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns the names of all commands, according to the help page.
pub fn commands() -> Vec<String> {
    let help = text(&Command::new(BINARY).arg("--help").output().unwrap());
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    // A description goes on in lines that are indented further.
    let lines = lines.take_while(|line| line.starts_with(' ')).filter(|line| !line.starts_with("   "));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Replaces each hash by `#`.
pub fn without_hashes(said: &str) -> String {
    hidden(said, |part| part.len() >= 8 && !part.contains(['.', ',']))
}

/// Replaces each number and hash by `#`, and the spaces that align them by one.
pub fn without_figures(said: &str) -> String {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = hidden(said, |_| true).lines().map(words).collect();
    lines.join("\n")
}

/// Replaces the parts of a text that look like a number or a hash, where `is_hidden` says so.
fn hidden(said: &str, is_hidden: fn(&str) -> bool) -> String {
    let parts = said.split_inclusive(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ',');
    let shown = |part: &str| {
        let (number, next) = part.split_at(part.char_indices().last().map_or(0, |(at, _)| at));
        let is_number = number.contains(|c: char| c.is_ascii_digit());
        if is_number && is_hidden(number) { format!("#{next}") } else { part.to_owned() }
    };
    parts.map(shown).collect()
}

pub fn eventually<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = f() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the process ids of the workers that `parent` started.
pub fn workers_of(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The fields are: pid (comm) state ppid …
        let Some((_, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let mut fields = rest.split(' ');
        let state = fields.next().unwrap_or("Z");
        let ppid: u32 = fields.next().and_then(|p| p.parse().ok()).unwrap_or(0);
        if ppid == parent && state != "Z" {
            found.push(pid);
        }
    }
    found.sort_unstable();
    found
}

/// A small random generator for the times of faults. Its seed is printed, and can be given.
pub struct Random(u64);

impl Random {
    #[allow(clippy::print_stdout)]
    pub fn seeded() -> Self {
        let given = std::env::var("LLINK_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed: u64 = given.unwrap_or_else(|| now().as_nanos() as u64);
        println!("LLINK_TEST_SEED={seed}");
        Self(seed | 1)
    }

    /// Returns a number from 0 to `n` − 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Returns number and loss of each step of a finished training, from its metrics.
pub fn trained_steps(place: &Place) -> Vec<(u64, f64)> {
    let lines = json_lines(place.artifact("align", "metrics.jsonl"));
    lines.iter().map(|line| (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap())).collect()
}

pub fn projector(place: &Place) -> String {
    let artifacts = place.artifacts(&["align"]);
    let found = artifacts.into_iter().find(|(path, _)| path.ends_with("projector.safetensors"));
    found.unwrap().1
}

pub fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn json_lines(path: PathBuf) -> Vec<Value> {
    let content = std::fs::read_to_string(path).unwrap();
    content.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the name and the state of each stage at the end of what `submit --json` printed.
pub fn states(said: &str) -> Vec<(String, String)> {
    let last: Value = serde_json::from_str(said.trim().lines().last().unwrap()).unwrap();
    let stages = last["stages"].as_array().unwrap().iter();
    stages.map(|s| ["stage", "state"].map(|key| s[key].as_str().unwrap().to_owned()).into()).collect()
}

pub fn words(states: &[(String, String)]) -> Vec<&str> {
    states.iter().map(|(_, state)| state.as_str()).collect()
}

pub fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

pub fn are_gone(processes: &[u32]) {
    let is_gone = |pid: &u32| !PathBuf::from(format!("/proc/{pid}")).exists();
    eventually("the workers are gone", || processes.iter().all(is_gone).then_some(()));
}

pub fn signal(pid: u32, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill {signal} {pid}");
}

/// Returns one figure of the evaluate stage, from `out/report.json`.
pub fn figure(place: &Place, name: &str) -> f64 {
    let report = place.report();
    report["figures"]["evaluate"][name].as_f64().unwrap_or_else(|| panic!("{name} is not in {report:#}"))
}
