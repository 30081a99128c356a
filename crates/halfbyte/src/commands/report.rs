//! `halfbyte report`: the page of a quantized folder, made again with what was measured since.

use crate::cli::{ReportArgs, ReportFormat};
use crate::fail::Failure;
use crate::output::{self, bytes};
use anyhow::Context;
use halfbyte_checkpoint::write_atomic;
use halfbyte_quantize::Report;
use halfbyte_report::{Evaluation, Facts, Run, document, html, markdown};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let report = read_report(&args.dir)?;
    let (target, format) = target(args)?;
    let mut evaluations = Vec::new();
    for path in &args.evaluation {
        let value = read_json(path)?;
        let found = Evaluation::read(&value).with_context(|| format!("--evaluation {}", path.display()))?;
        evaluations.extend(found.into_iter().map(|e| known(e, &args.dir, &report)));
    }
    let run = match &args.run {
        None => None,
        Some(path) => Some(
            Run::read(&read_json(path)?, report.output_bytes)
                .with_context(|| format!("--run {}", path.display()))?,
        ),
    };
    let facts = Facts::new(&report, args.title.clone(), run, evaluations);
    let text = match format {
        ReportFormat::Html => html(&document(&facts)),
        ReportFormat::Md => markdown(&document(&facts)),
        ReportFormat::Json => format!("{:#}\n", serde_json::to_value(&facts)?),
    };
    let Some(target) = target else {
        return output::print(&text);
    };
    write_atomic(&target, text.as_bytes())?;
    if args.output.json {
        return output::print_json(&json!({
            "out": target,
            "format": format!("{format:?}").to_lowercase(),
            "bytes": text.len(),
            "evaluations": facts.evaluations.len(),
        }));
    }
    output::print(&format!("{} is written, {}\n", target.display(), bytes(text.len() as u64)))
}

/// The pages that `quantize` puts into its folder.
pub(crate) fn pages(report: &Report) -> Vec<(&'static str, String)> {
    let document = document(&Facts::new(report, None, None, Vec::new()));
    vec![(HTML, html(&document)), (MARKDOWN, markdown(&document))]
}

const HTML: &str = "report.html";
const MARKDOWN: &str = "report.md";

/// The report that `quantize` left in a folder.
pub(crate) fn read_report(dir: &Path) -> anyhow::Result<Report> {
    let path = dir.join("report.json");
    let text = fs::read(&path).map_err(|e| {
        Failure::new(format!("cannot read {}: {e}", path.display()))
            .hint("give a folder that `halfbyte quantize` wrote; report.json must go along with the model")
    })?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a report of this version", path.display()))
}

/// The same, if there is one: other tools leave none, and ours may have been lost.
pub(crate) fn find_report(dir: &Path) -> anyhow::Result<Option<Report>> {
    match dir.join("report.json").exists() {
        true => read_report(dir).map(Some),
        false => Ok(None),
    }
}

/// Where to write, `None` for standard output, and what.
fn target(args: &ReportArgs) -> anyhow::Result<(Option<PathBuf>, ReportFormat)> {
    let extension = args.out.as_ref().and_then(|o| o.extension()).and_then(|e| e.to_str());
    let format = args.format.unwrap_or(match extension {
        Some("md") => ReportFormat::Md,
        Some("json") => ReportFormat::Json,
        _ => ReportFormat::Html,
    });
    let target = match (&args.out, format) {
        (Some(out), _) => out.clone(),
        (None, ReportFormat::Html) => args.dir.join(HTML),
        (None, ReportFormat::Md) => args.dir.join(MARKDOWN),
        (None, ReportFormat::Json) => {
            return Err(Failure::new("--format json needs --out FILE, or --out - for standard output")
                .hint("report.json in the folder is what the report is made of, and stays as it is")
                .into());
        }
    };
    if target.as_os_str() == "-" {
        if args.output.json {
            return Err(Failure::new("--out - and --json both want standard output; give one of them").into());
        }
        return Ok((None, format));
    }
    if same_file(&target, &args.dir.join("report.json")) {
        return Err(Failure::new(format!("--out {} is what the report is made of", target.display()))
            .hint("choose another name")
            .into());
    }
    Ok((Some(target), format))
}

/// What the report knows of its own folder is added to what was measured of it.
fn known(mut evaluation: Evaluation, dir: &Path, report: &Report) -> Evaluation {
    if same_file(Path::new(&evaluation.model), dir) {
        evaluation.this_folder = true;
        evaluation.bytes = Some(report.output_bytes);
        evaluation.bits_per_weight = Some(report.bits_per_weight);
    }
    evaluation
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn read_json(path: &Path) -> anyhow::Result<Value> {
    let text = fs::read(path).map_err(|e| Failure::new(format!("cannot read {}: {e}", path.display())))?;
    serde_json::from_slice(&text).map_err(|e| {
        Failure::new(format!("{} is not JSON: {e}", path.display()))
            .hint("give what a command printed with --json")
            .into()
    })
}
