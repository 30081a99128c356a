//! Perplexity, divergence and tasks.

use super::{name, or_none};
use crate::document::{Block, Figure, Section, Table};
use crate::evaluation::{Evaluation, NORMAL_95, Task};
use crate::facts::{Facts, distinct};
use crate::numbers::{percent, significant, thousands};
use crate::plots::{self, ByTask, Measure};

/// Over the tasks, each counting the same.
pub(super) fn mean_accuracy(e: &Evaluation) -> Option<f64> {
    let values: Vec<f64> = e.tasks.iter().filter_map(|t| t.1.acc).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

pub(super) fn accuracy(f: &Facts) -> Option<Section> {
    let mut blocks = Vec::new();
    if f.evaluations.is_empty() {
        blocks.push(Block::Text(
            "Not measured yet. `halfbyte eval DIR --perplexity TEXT --json > eval.json` measures a model, and \
             `halfbyte report DIR --evaluation eval.json` puts the result here, beside those of any other models."
                .into(),
        ));
        return Some(Section { id: "accuracy", title: "Accuracy", blocks });
    }
    let mut figures = Vec::new();
    figures.extend(perplexities(f));
    figures.extend(divergences(f));
    figures.extend(task_figure(f));
    figures.extend(paired_figure(f));
    blocks.push(Block::Figures(figures));
    blocks.extend(scores(f).map(Block::Table));
    let protocols = distinct(f.evaluations.iter().filter_map(|e| e.perplexity.as_ref()?.protocol.as_deref()));
    blocks.extend(protocols.iter().map(|p| Block::Text(format!("Perplexity: {}", name(p)))));
    Some(Section { id: "accuracy", title: "Accuracy", blocks })
}

fn perplexities(f: &Facts) -> Option<Figure> {
    let measured = || f.evaluations.iter().filter_map(|e| Some((e, e.perplexity.as_ref()?)));
    let mut t =
        Table::new("Perplexity", ["Model", "Perplexity", "95 % interval", "Window", "Windows", "Tokens"]);
    for (e, p) in measured() {
        let whole = |n: Option<u64>| or_none(n.map(thousands));
        let margin = or_none(p.margin.map(|m| format!("± {}", significant(m, 3))));
        t.row([
            e.model.clone(),
            significant(p.value, 6),
            margin,
            whole(p.window),
            whole(p.windows),
            whole(p.tokens),
        ]);
    }
    let rows = measured().map(|(e, p)| (e.model.clone(), p.value, p.margin)).collect();
    let svg =
        plots::measure(&Measure { id: "perplexity-plot", title: "Perplexity", rows, unit: "perplexity" })?;
    let comparable = measured().map(|(_, p)| (p.window, p.windows, p.tokens)).collect::<Vec<_>>();
    let warning = match comparable.windows(2).all(|w| w[0] == w[1]) {
        true => "",
        false => " Windows differ between these models: the figures cannot be compared.",
    };
    Some(Figure { caption: format!("Perplexity, lower is better.{warning}"), svg, table: t })
}

fn divergences(f: &Facts) -> Option<Figure> {
    let measured = || f.evaluations.iter().filter_map(|e| Some((e, e.kld.as_ref()?)));
    let mut t = Table::new(
        "KL divergence to the reference, in nats a token",
        ["Model", "Mean", "95 % interval", "Median", "99th percentile", "Same top token"],
    );
    for (e, k) in measured() {
        let nats = |v: Option<f64>| or_none(v.map(|v| significant(v, 4)));
        t.row([
            e.model.clone(),
            nats(k.mean),
            or_none(k.margin.map(|m| format!("± {}", significant(m, 3)))),
            nats(k.median),
            nats(k.p99),
            or_none(k.top1_agreement.map(percent)),
        ]);
    }
    let rows = measured().filter_map(|(e, k)| Some((e.model.clone(), k.mean?, k.margin))).collect();
    let unit = "nats a token";
    let svg = plots::measure(&Measure { id: "kld-plot", title: "Mean KL divergence", rows, unit })?;
    let caption = "Mean KL divergence to the reference model, lower is better.".into();
    Some(Figure { caption, svg, table: t })
}

/// Names of all tasks, in the order in which they first come.
fn task_names(f: &Facts) -> Vec<&str> {
    distinct(f.evaluations.iter().flat_map(|e| &e.tasks).map(|(name, _)| name.as_str()))
}

/// A figure with a mark for every model and task for which `value` has a share and the ends of its interval.
fn by_task(
    f: &Facts,
    id: &str,
    title: &str,
    unit: &str,
    value: impl Fn(&Task) -> Option<[f64; 3]>,
) -> Option<String> {
    let of = |e: &Evaluation, name: &str| e.tasks.iter().find(|t| t.0 == name).and_then(|t| value(&t.1));
    let names = task_names(f);
    let shown: Vec<(usize, &Evaluation)> =
        f.evaluations.iter().enumerate().filter(|(_, e)| names.iter().any(|n| of(e, n).is_some())).collect();
    let tasks = names.iter().map(|n| (*n, shown.iter().map(|(_, e)| of(e, n)).collect())).collect();
    let models = shown.iter().map(|(i, e)| (e.model.as_str(), *i)).collect();
    plots::by_task(&ByTask { id, title, models, tasks, unit })
}

fn task_figure(f: &Facts) -> Option<Figure> {
    let mut t = Table::new(
        "Accuracy by task",
        ["Task", "Model", "Accuracy", "95 % interval", "Normalised accuracy", "Rows"],
    );
    for name in task_names(f) {
        for e in &f.evaluations {
            let Some((_, task)) = e.tasks.iter().find(|x| x.0 == name) else { continue };
            t.row([
                name.into(),
                e.model.clone(),
                or_none(task.acc.map(percent)),
                or_none(task.stderr.map(|s| format!("± {}", percent(NORMAL_95 * s)))),
                or_none(task.acc_norm.map(percent)),
                or_none(task.n.map(thousands)),
            ]);
        }
    }
    let svg = by_task(f, "tasks-plot", "Accuracy by task", "accuracy with 95 % interval", |task| {
        let (acc, margin) = (task.acc?, NORMAL_95 * task.stderr.unwrap_or(0.0));
        Some([acc, acc - margin, acc + margin])
    })?;
    let caption = "Accuracy by task with 95 % intervals (1.96 standard errors), higher is better. Intervals are those of \
                   each model alone: models answer the same rows, so that smaller differences can be real."
        .into();
    Some(Figure { caption, svg, table: t })
}

/// What labelled sets are judged by beside accuracy; `None` without such a figure.
fn scores(f: &Facts) -> Option<Table> {
    let mut t = Table::new(
        "Other figures of labelled sets",
        ["Set", "Figure", "Model", "Value", "95 % interval", "Less the reference's", "95 % interval of that"],
    );
    let interval = |ends: [f64; 2]| format!("{} … {}", fixed(ends[0]), fixed(ends[1]));
    for set in task_names(f) {
        let sets = || f.evaluations.iter().filter_map(|e| Some((e, e.tasks.iter().find(|x| x.0 == set)?)));
        let all = || sets().flat_map(|(e, (_, task))| task.scores.iter().map(move |s| (e, s)));
        for figure in distinct(all().map(|(_, (name, _))| name.as_str())) {
            for (e, (_, s)) in all().filter(|(_, (name, _))| name == figure) {
                t.row([
                    set.into(),
                    figure.into(),
                    e.model.clone(),
                    fixed(s.value),
                    or_none(s.interval.map(interval)),
                    or_none(s.difference.map(|d| fixed(d[0]))),
                    or_none(s.difference.map(|d| interval([d[1], d[2]]))),
                ]);
            }
        }
    }
    (!t.rows.is_empty()).then_some(t)
}

/// With the digits that intervals of a few hundred rows leave.
fn fixed(value: f64) -> String {
    format!("{value:.4}")
}

/// Differences from the reference on the same rows, which tell more than two intervals do.
fn paired_figure(f: &Facts) -> Option<Figure> {
    let mut t = Table::new(
        "Accuracy less that of the reference, on the same rows",
        ["Task", "Model", "Difference", "95 % interval", "McNemar p"],
    );
    let signed = |v: f64| format!("{}{}", if v < 0.0 { "-" } else { "" }, percent(v.abs()));
    for name in task_names(f) {
        for e in &f.evaluations {
            let paired = e.tasks.iter().find(|x| x.0 == name).and_then(|x| x.1.paired.as_ref());
            let Some(p) = paired else { continue };
            t.row([
                name.into(),
                e.model.clone(),
                signed(p.difference),
                format!("{} … {}", signed(p.interval[0]), signed(p.interval[1])),
                or_none(p.p_value.map(|p| significant(p, 3))),
            ]);
        }
    }
    let unit = "accuracy less the reference's, 95 % bootstrap interval";
    let svg = by_task(f, "paired-plot", "Difference in accuracy by task", unit, |task| {
        let p = task.paired.as_ref()?;
        Some([p.difference, p.interval[0], p.interval[1]])
    })?;
    let caption =
        "Accuracy less that of the reference on the same rows: an interval beyond 0 is a real difference."
            .into();
    Some(Figure { caption, svg, table: t })
}
