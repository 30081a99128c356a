//! Several recipes on one model, as a document: what each one costs and what it leaves of the accuracy.

use crate::document::{Block, Document, Figure, NONE, Section, Table, Tile};
use crate::numbers::{bytes, duration, significant};
use crate::plots::{self, Measure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an ablation found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ablation {
    /// The model.
    pub title: String,
    /// How perplexity was measured, in words.
    pub protocol: Option<String>,
    /// How everything was calibrated and measured, in words.
    pub notes: Vec<String>,
    /// The model before.
    pub original: Measured,
    /// The recipes in the order in which they were given; gaps are measured against the first.
    pub recipes: Vec<Ablated>,
}

/// A recipe with its runs, one for each seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ablated {
    /// Its name.
    pub recipe: String,
    /// The runs.
    pub runs: Vec<AblatedRun>,
}

/// One quantization, measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AblatedRun {
    /// Its folder.
    pub folder: String,
    /// Seed of the recipe; the calibration windows begin after those of the seed before.
    pub seed: u64,
    /// Seconds of the quantization, `None` where an earlier process did it and left no word.
    pub seconds: Option<f64>,
    /// Predicted peak memory, in bytes.
    pub peak_bytes: u64,
    /// Bytes of its tensors.
    pub output_bytes: u64,
    /// Stored bits of a quantized weight.
    pub bits_per_weight: f64,
    /// Mean over the layers of the relative output error.
    pub mean_relative_error: f64,
    /// What was measured of it.
    #[serde(flatten)]
    pub measured: Measured,
}

/// What was measured of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Perplexity.
    pub perplexity: Option<f64>,
    /// Mean KL divergence from the original, in nats.
    pub divergence: Option<f64>,
    /// Share of tokens with the same most probable next token.
    pub same_top1: Option<f64>,
    /// Mean accuracy of all tasks, or of the classified set.
    pub accuracy: Option<f64>,
    /// Accuracy of each task.
    pub tasks: BTreeMap<String, f64>,
}

impl Ablated {
    /// A figure of the runs that have it.
    fn figures(&self, of: impl Fn(&AblatedRun) -> Option<f64>) -> Vec<f64> {
        self.runs.iter().filter_map(of).collect()
    }
}

/// The mean and, of two or more, the sample standard deviation.
fn spread(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (!values.is_empty()).then(|| (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())))
}

/// `12.34 ± 0.05`, or a dash.
fn cell(values: &[f64], scale: f64, digits: usize) -> String {
    match spread(values) {
        None => NONE.into(),
        Some((mean, None)) => format!("{:.digits$}", scale * mean),
        Some((mean, Some(s))) => format!("{:.digits$} ± {:.digits$}", scale * mean, scale * s),
    }
}

impl Ablation {
    /// Share of the distance between the first recipe's mean perplexity and the original's that a recipe's mean closes.
    fn gap_closed(&self, recipe: &Ablated) -> Option<f64> {
        let mean = |r: &Ablated| spread(&r.figures(|r| r.measured.perplexity)).map(|s| s.0);
        let (first, original) = (mean(self.recipes.first()?)?, self.original.perplexity?);
        let gap = first - original;
        (gap > 0.0).then_some((first - mean(recipe)?) / gap)
    }

    fn table(&self) -> Table {
        let mut table = Table::new(
            "Recipes: means over the seeds, with the sample standard deviation",
            [
                "Recipe",
                "Bits",
                "Size",
                "Perplexity",
                "Gap closed",
                "KLD",
                "Same top-1, %",
                "Mean acc, %",
                "Error, %",
                "Time",
            ],
        );
        let o = &self.original;
        table.row([
            "original".into(),
            NONE.into(),
            NONE.into(),
            cell(o.perplexity.as_slice(), 1.0, 3),
            NONE.into(),
            NONE.into(),
            NONE.into(),
            cell(o.accuracy.as_slice(), 100.0, 2),
            NONE.into(),
            NONE.into(),
        ]);
        for r in &self.recipes {
            let first = r.runs.first();
            table.row([
                r.recipe.clone(),
                cell(first.map(|r| r.bits_per_weight).as_slice(), 1.0, 3),
                first.map_or(NONE.into(), |r| bytes(r.output_bytes)),
                cell(&r.figures(|r| r.measured.perplexity), 1.0, 3),
                self.gap_closed(r).map_or(NONE.into(), |g| format!("{:.0} %", 100.0 * g)),
                cell(&r.figures(|r| r.measured.divergence), 1.0, 4),
                cell(&r.figures(|r| r.measured.same_top1), 100.0, 2),
                cell(&r.figures(|r| r.measured.accuracy), 100.0, 2),
                cell(&r.figures(|r| Some(r.mean_relative_error)), 100.0, 3),
                spread(&r.figures(|r| r.seconds)).map_or(NONE.into(), |s| duration(s.0)),
            ]);
        }
        table
    }

    fn tasks(&self) -> Option<Table> {
        let names: Vec<&String> = self.original.tasks.keys().collect();
        if names.len() < 2 {
            return None;
        }
        let columns = ["Recipe".to_string()].into_iter().chain(names.iter().map(|n| n.to_string())).collect();
        let mut table = Table { caption: "Accuracy of each task, %".into(), columns, rows: Vec::new() };
        let original = names.iter().map(|n| format!("{:.2}", 100.0 * self.original.tasks[*n]));
        table.rows.push(["original".to_string()].into_iter().chain(original).collect());
        for r in &self.recipes {
            let cells =
                names.iter().map(|n| cell(&r.figures(|r| r.measured.tasks.get(*n).copied()), 100.0, 2));
            table.rows.push([r.recipe.clone()].into_iter().chain(cells).collect());
        }
        Some(table)
    }

    fn figure(
        &self,
        id: &str,
        title: &str,
        unit: &str,
        of: impl Fn(&Measured) -> Option<f64>,
    ) -> Option<Figure> {
        let own = of(&self.original).map(|v| ("original".to_string(), v, None));
        let rows = self.recipes.iter().filter_map(|r| {
            let (mean, s) = spread(&r.figures(|r| of(&r.measured)))?;
            Some((r.recipe.clone(), mean, s))
        });
        let rows: Vec<_> = own.into_iter().chain(rows).collect();
        if rows.len() < 2 {
            return None;
        }
        let mut table = Table::new(title, ["Recipe", "Mean", "Standard deviation"]);
        for (name, mean, s) in &rows {
            table.row([name.clone(), significant(*mean, 5), s.map_or(NONE.into(), |s| significant(s, 2))]);
        }
        let svg = plots::measure(&Measure { id, title, rows, unit })?;
        let caption =
            format!("{title}; lines show the standard deviation between seeds where there are several.");
        Some(Figure { caption, svg, table })
    }

    /// The page.
    pub fn document(&self) -> Document {
        let figures = [
            self.figure("perplexity", "Perplexity, lower is better", "perplexity", |m| m.perplexity),
            self.figure("divergence", "KL divergence from the original, lower is better", "nats", |m| {
                m.divergence
            }),
            self.figure("accuracy", "Mean accuracy, higher is better", "share of right answers", |m| {
                m.accuracy
            }),
        ];
        let figures: Vec<Figure> = figures.into_iter().flatten().collect();
        let mut blocks = vec![Block::Table(self.table())];
        blocks.extend(self.tasks().map(Block::Table));
        if !figures.is_empty() {
            blocks.push(Block::Figures(figures));
        }
        let mut how: Vec<Block> = self.notes.iter().cloned().map(Block::Text).collect();
        how.extend(self.protocol.iter().map(|p| Block::Text(format!("Perplexity: {p}."))));
        how.push(Block::Text("Gap closed: how much of the distance between the first recipe's perplexity and the original's a recipe closes.".into()));
        let mut runs = Table::new(
            "Every run",
            ["Folder", "Seed", "Perplexity", "KLD", "Mean acc, %", "Seconds", "Peak memory, predicted"],
        );
        for run in self.recipes.iter().flat_map(|r| &r.runs) {
            let m = &run.measured;
            runs.row([
                run.folder.clone(),
                run.seed.to_string(),
                cell(m.perplexity.as_slice(), 1.0, 4),
                cell(m.divergence.as_slice(), 1.0, 5),
                cell(m.accuracy.as_slice(), 100.0, 2),
                cell(run.seconds.as_slice(), 1.0, 1),
                bytes(run.peak_bytes),
            ]);
        }
        how.push(Block::Folded(runs));
        Document {
            title: format!("{}: recipes beside each other", self.title),
            lead: "What each recipe costs, and what it leaves of the model's accuracy.".into(),
            headline: self.headline(),
            sections: vec![
                Section { id: "recipes", title: "Recipes", blocks },
                Section { id: "how", title: "How it was measured", blocks: how },
            ],
            footer: format!("Written by halfbyte {}.", env!("CARGO_PKG_VERSION")),
        }
    }

    fn headline(&self) -> Vec<Tile> {
        let tile = |label, value: String, remark: String| Tile { label, value, remark };
        let mut tiles = vec![tile("Recipes", self.recipes.len().to_string(), String::new())];
        let mean = |r: &Ablated| spread(&r.figures(|r| r.measured.perplexity)).map(|s| s.0);
        let best = self.recipes.iter().filter_map(|r| Some((r, mean(r)?))).min_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((best, value)) = best {
            let was =
                self.original.perplexity.map_or(String::new(), |p| format!("was {}", significant(p, 4)));
            tiles.push(tile("Lowest perplexity", significant(value, 4), was));
            tiles.push(tile("By", best.recipe.clone(), String::new()));
        }
        tiles
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{html, markdown};

    fn run(seed: u64, perplexity: f64) -> AblatedRun {
        AblatedRun {
            folder: format!("r.seed{seed}"),
            seed,
            seconds: Some(2.0),
            peak_bytes: 1 << 20,
            output_bytes: 1 << 20,
            bits_per_weight: 4.5,
            mean_relative_error: 0.01,
            measured: Measured { perplexity: Some(perplexity), ..Measured::default() },
        }
    }

    fn ablation() -> Ablation {
        let recipe = |recipe: &str, runs| Ablated { recipe: recipe.into(), runs };
        Ablation {
            title: "tiny <model>".into(),
            protocol: Some("windows of 64".into()),
            notes: vec!["Calibrated on `text`.".into()],
            original: Measured { perplexity: Some(10.0), ..Measured::default() },
            recipes: vec![
                recipe("plain", vec![run(0, 20.0), run(1, 22.0), run(2, 24.0)]),
                recipe("better", vec![run(0, 13.0)]),
            ],
        }
    }

    #[test]
    fn gaps_are_measured_against_the_first_recipe_and_spread_between_seeds() {
        let page = markdown(&ablation().document());
        // (22 − 13) / (22 − 10); the sample standard deviation of 20, 22, 24 is 2.
        for needle in ["22.000 ± 2.000", "75 %", "| original |", "13.000"] {
            assert!(page.contains(needle), "no {needle} in {page}");
        }
        let page = html(&ablation().document());
        assert!(page.contains("tiny &lt;model&gt;") && page.contains("<svg"));
    }

    #[test]
    fn the_json_holds_all_of_it() {
        let text = serde_json::to_string(&ablation()).unwrap();
        assert_eq!(serde_json::from_str::<Ablation>(&text).unwrap(), ablation());
    }
}
