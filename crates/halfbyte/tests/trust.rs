//! A run that is stopped, killed or starved goes on to the same bytes; threads and instruction sets change nothing.
#![allow(clippy::unwrap_used)]

mod util;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use util::*;

/// The recipe of these tests: sequential, with correction, feedback and shifts, all that carries state.
const RECIPE: &str = "fpq-w4a4";
/// Enough that a run takes half a second.
const WINDOWS: usize = 4;

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

fn ended(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Pseudo-random numbers below one (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[test]
fn killed_at_20_moments() {
    let scratch = Scratch::new();
    let begin = Instant::now();
    finish(&mut scratch.quantize(RECIPE, WINDOWS)).json();
    let mut whole = begin.elapsed().as_secs_f64();
    let wanted = contents(&scratch.out());
    let mut random = Random(2);
    let (mut kills, mut resumed) = (0, 0);
    for attempt in 0..100 {
        if kills >= 20 {
            break;
        }
        fs::remove_dir_all(scratch.out()).unwrap();
        // Killed once or twice on its way.
        for start_over in [true, false].into_iter().take(1 + attempt % 2) {
            let mut child = start(&mut scratch.quantize(RECIPE, WINDOWS));
            let moment = whole * random.next();
            std::thread::sleep(Duration::from_secs_f64(moment));
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                kills += 1;
            } else if start_over {
                // Runs are faster than the first one was, with other tests beside it: later moments would miss too.
                whole = moment;
            }
            child.wait().unwrap();
        }
        let last = finish(&mut scratch.quantize(RECIPE, WINDOWS)).json();
        resumed += usize::from(last["resumed_layers"].as_u64().unwrap() > 0);
        assert_same(&wanted, &contents(&scratch.out()), &format!("attempt {attempt}"));
        assert!(!scratch.path("out.partial").exists());
    }
    assert!(kills >= 20, "only {kills} kills hit a running program");
    assert!(resumed > 0, "no run had anything to go on from");
}

#[test]
fn interrupted_by_ctrl_c() {
    let scratch = Scratch::new();
    finish(&mut scratch.quantize(RECIPE, WINDOWS)).json();
    let wanted = contents(&scratch.out());
    fs::remove_dir_all(scratch.out()).unwrap();

    let mut child = start(&mut scratch.quantize(RECIPE, WINDOWS));
    let first_block = scratch.path("out.partial/state-0002.safetensors");
    assert!(wait_until(&mut child, || first_block.exists()), "the first block was never finished");
    signal(&child, "-INT");
    let ran = ended(child);
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("same command") && ran.stderr.lines().count() == 1, "{ran:?}");
    assert!(!scratch.out().exists());

    let last = finish(&mut scratch.quantize(RECIPE, WINDOWS)).json();
    assert!(last["resumed_layers"].as_u64().unwrap() >= 7, "{last}");
    assert_same(&wanted, &contents(&scratch.out()), "after Ctrl-C");
}

#[test]
fn an_unfinished_run_belongs_to_its_options() {
    let scratch = Scratch::new();
    let mut child = start(&mut scratch.quantize(RECIPE, WINDOWS));
    assert!(wait_until(&mut child, || scratch.path("out.partial/state-0001.safetensors").exists()));
    // The same run at the same time is refused, and the first one goes on.
    let said = finish(&mut scratch.quantize(RECIPE, WINDOWS)).refused(&["another halfbyte", "out"]);
    assert!(said.contains("hint: "));
    child.kill().unwrap();
    child.wait().unwrap();
    finish(&mut scratch.quantize("minmax-fp-w4a4", WINDOWS)).refused(&["out.partial", "another recipe"]);
    finish(&mut scratch.quantize(RECIPE, WINDOWS + 1)).refused(&["out.partial", "other calibration tokens"]);
    finish(&mut scratch.quantize(RECIPE, WINDOWS)).json();
}

#[test]
fn the_same_bytes_with_any_threads_and_instructions() {
    let scratch = Scratch::new();
    let run = |threads: &str, isa: &str, memory: &str| {
        let mut command = scratch.quantize(RECIPE, 5);
        command.args(["--threads", threads, "--activation-memory", memory]).env("HALFBYTE_ISA", isa);
        finish(&mut command).json();
        let found = contents(&scratch.out());
        fs::remove_dir_all(scratch.out()).unwrap();
        found
    };
    let wanted = run("1", "", "1GiB");
    assert_same(&wanted, &run("2", "", "1GiB"), "two threads");
    assert_same(&wanted, &run("2", "", "0"), "activations in files");
    assert_same(&wanted, &run("2", "avx2", "1GiB"), "AVX2");
    assert_same(&wanted, &run("2", "portable", "1GiB"), "portable instructions");
}

/// Runs a shell script in a mount namespace of its own with a disk of `size` at `$DISK`; `None` where that is not
/// permitted.
fn on_small_disk(scratch: &Scratch, size: &str, script: &str) -> Option<Ran> {
    let disk = scratch.path("disk");
    fs::create_dir_all(&disk).unwrap();
    let mount = format!("mount -t tmpfs -o size={size} none \"$DISK\" || exit 99\n");
    for namespace in [&["--mount"][..], &["--map-root-user", "--mount"]] {
        let mut command = Command::new("unshare");
        command.args(namespace).args(["sh", "-c", &(mount.clone() + script)]);
        command
            .env("DISK", &disk)
            .env("HALFBYTE", env!("CARGO_BIN_EXE_halfbyte"))
            .env("MODEL", scratch.model());
        command.env("TEXT", text()).env_remove("RUST_LOG");
        match command.output() {
            Ok(output) if output.status.code() != Some(99) && !output.stderr.starts_with(b"unshare:") => {
                return Some(Ran {
                    code: output.status.code(),
                    stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                    stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
                });
            }
            _ => {}
        }
    }
    None
}

#[test]
fn the_disk_is_full() {
    const RUN: &str = "\"$HALFBYTE\" quantize \"$MODEL\" --recipe fpq-w4a4 --calibration \"$TEXT\" --out \"$DISK/out\" \
                       --calibration-window 32 --calibration-windows 16 --json";
    let scratch = Scratch::new();
    // Too small from the start: nothing is begun.
    let script = format!("{RUN}; code=$?; ls -A \"$DISK\"; exit $code");
    let Some(ran) = on_small_disk(&scratch, "200k", &script) else {
        assert!(
            std::env::var_os("CI").is_none(),
            "a disk of a test's own cannot be mounted here, and CI must"
        );
        eprintln!("SKIPPED the_disk_is_full: a disk of a test's own cannot be mounted here");
        return;
    };
    assert_eq!(ran.stdout, "", "nothing is left behind");
    ran.refused(&["disk", "free"]);

    // Somebody else fills it on the way; with room again the run goes on.
    let script = format!(
        "{RUN} >\"$DISK/../said\" 2>&1 & \n\
         while [ ! -e \"$DISK/out.partial/state-0001.safetensors\" ]; do sleep 0.01; done\n\
         cat /dev/zero >\"$DISK/filler\" 2>/dev/null\n\
         wait $!; echo \"code $?\"; cat \"$DISK/../said\"; ls \"$DISK\"\n\
         rm \"$DISK/filler\"; {RUN}"
    );
    let ran = on_small_disk(&scratch, "4m", &script).unwrap();
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let (refusal, result) = ran.stdout.split_once('{').unwrap();
    let lines: Vec<&str> = refusal.lines().collect();
    assert_eq!(lines[0], "code 1", "{refusal}");
    assert!(
        lines[1].starts_with("error: ") && (lines[1].contains("full") || lines[1].contains("free")),
        "{refusal}"
    );
    assert_eq!(&lines[2..], ["filler", "out.partial"], "{refusal}");
    let result: serde_json::Value = serde_json::from_str(&format!("{{{result}")).unwrap();
    assert_eq!(result["was_finished"], false);
}
