//! A small harness: runs the built program on copies of the embedded model.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The committed files of the embedded model and its text.
pub fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets")
}

pub fn model() -> PathBuf {
    assets().join("stories260K")
}

pub fn text() -> PathBuf {
    assets().join("tinystories.txt")
}

/// What a run of the program gave.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The built program, with nothing of the environment that changes its output.
pub fn halfbyte() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfbyte"));
    command.env_remove("RUST_LOG").env_remove("HALFBYTE_ISA").stdin(Stdio::null());
    // No folder for finished rows unless a test names one.
    command.env_remove("XDG_CACHE_HOME").env_remove("HOME").env_remove("LOCALAPPDATA");
    command
}

#[track_caller]
pub fn finish(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs with these arguments.
#[track_caller]
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    finish(halfbyte().args(args))
}

impl Ran {
    /// Checks success and that standard output is one JSON object, standard error empty.
    #[track_caller]
    pub fn json(self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(self.stderr, "", "nothing to say on a silent success");
        let value: Value = serde_json::from_str(&self.stdout).expect("one JSON object");
        assert!(value.is_object());
        value
    }

    #[track_caller]
    pub fn text(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Checks that the program refused with exit code 1 and one `error:` line that says all of `needles`.
    #[track_caller]
    pub fn refused(self, needles: &[&str]) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert!(!lines.is_empty() && lines.len() <= 2, "{self:?}");
        assert!(lines[0].starts_with("error: "), "{self:?}");
        assert!(lines.get(1).is_none_or(|l| l.starts_with("hint: ")), "{self:?}");
        for needle in needles {
            assert!(lines[0].contains(needle), "no {needle:?} in: {}", lines[0]);
        }
        self.stderr
    }
}

/// A temporary folder with a copy of the model in it.
pub struct Scratch {
    pub dir: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        let scratch = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(scratch.model()).unwrap();
        for entry in fs::read_dir(model()).unwrap() {
            let entry = entry.unwrap();
            fs::write(scratch.model().join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
        }
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn model(&self) -> PathBuf {
        self.path("model")
    }

    pub fn weights(&self) -> PathBuf {
        self.model().join("model.safetensors")
    }

    pub fn out(&self) -> PathBuf {
        self.path("out")
    }

    /// Writes a file and says where.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// `quantize` of the model copy to `out`, on so many windows of 32 tokens of the text.
    pub fn quantize(&self, recipe: &str, windows: usize) -> Command {
        let mut command = halfbyte();
        command.arg("quantize").arg(self.model()).args(["--recipe", recipe]).arg("--calibration").arg(text());
        command.arg("--out").arg(self.out()).args(["--calibration-window", "32", "--json"]);
        command.args(["--calibration-windows", &windows.to_string()]);
        command
    }

    /// Changes config.json.
    pub fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.model().join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        fs::write(&path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    }

    /// Changes header and data of the weights.
    pub fn edit_weights(&self, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        let (mut header, mut data) = read_safetensors(&self.weights());
        edit(&mut header, &mut data);
        fs::write(self.weights(), safetensors_bytes(&header, &data)).unwrap();
    }

    /// Quantizes with a fast recipe.
    pub fn quantized(&self) -> PathBuf {
        finish(&mut self.quantize("fpq-w4a4", 2)).json();
        self.out()
    }
}

pub fn read_safetensors(path: &Path) -> (Value, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

pub fn safetensors_bytes(header: &Value, data: &[u8]) -> Vec<u8> {
    let mut text = serde_json::to_vec(header).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes.extend(data);
    bytes
}

/// Where the data of a tensor begins and ends.
pub fn offsets(header: &Value, tensor: &str) -> (usize, usize) {
    let at = |i: usize| header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    (at(0), at(1))
}

/// Every file of a folder by name.
pub fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// Checks that two folders have the same files with the same bytes.
#[track_caller]
pub fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in a {
        assert!(bytes == &b[name], "{what}: {name} differs");
    }
}

/// Waits until `ready`, the child ends, or a minute is over; says whether it is ready.
pub fn wait_until(child: &mut Child, ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if ready() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return ready();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}
