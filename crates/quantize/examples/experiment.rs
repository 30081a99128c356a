//! scratch
use halfbyte_evaluate::*;
use halfbyte_model::Model;
use halfbyte_quantize::*;
use std::path::Path;
struct P(std::time::Instant);
impl Progress for P {
    fn begin(&mut self, _: usize, _: usize) {}
    fn advance(&mut self, _: usize) {}
    fn stopped(&self) -> bool { false }
}
// experiment MODEL CALIB window windows EVAL evalwindow evalwindows skip recipe [json overrides]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let a: Vec<String> = std::env::args().collect();
    let n = |i: usize| a[i].parse::<usize>().unwrap();
    let model = Model::open(Path::new(&a[1]))?;
    let tok = model.tokenizer()?;
    let calib = tok.encode(&read_text(Path::new(&a[2]))?)?;
    let windows = calibration_windows(&calib, n(3), n(4))?;
    let recipe = Recipe::named(&a[9])?;
    let mut v = serde_json::to_value(&recipe)?;
    if a.len() > 10 {
        let o: serde_json::Value = serde_json::from_str(&a[10])?;
        for (k, x) in o.as_object().unwrap() { v[k] = x.clone(); }
    }
    let recipe: Recipe = serde_json::from_value(v)?;
    let out = std::env::temp_dir().join(format!("hbexp-{}", std::process::id()));
    let t = std::time::Instant::now();
    let o = quantize(&Job { model: &model, recipe: &recipe, windows: &windows, out: &out, activation_memory: 8 << 30 }, &mut P(t))?;
    let qs = t.elapsed().as_secs_f64();
    let q = Model::open(&out)?;
    let toks = tok.encode(&read_text(Path::new(&a[5]))?)?;
    let t = std::time::Instant::now();
    let p = perplexity(&q, &toks, PerplexityOptions { window: n(6), windows: Some(n(7)), skip_tokens: n(8) }, &mut |_, _| true)?;
    println!("{} {}: ppl {:.4} relerr {:.5} bpw {:.3} quantize {qs:.1}s eval {:.1}s", a[9], a.get(10).map_or("", |s| s), p.value, o.report.mean_relative_error, o.report.bits_per_weight, t.elapsed().as_secs_f64());
    if std::env::var("KEEP").is_err() { std::fs::remove_dir_all(&out)?; } else { println!("{}", out.display()); }
    Ok(())
}
