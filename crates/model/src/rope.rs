//! Rotary frequencies and their scalings, as Hugging Face configs describe them.

use crate::ModelError;
use crate::config::{Config, invalid, unsupported};
use halfbyte_tensor::Rotary;
use serde_json::Value;
use std::f64::consts::PI;

/// Rotary frequencies of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Angle a position, for each pair of channels.
    pub frequencies: Vec<f32>,
    /// Factor on sines and cosines, 1 but for YaRN.
    pub amplitude: f64,
}

/// Most channels of a head.
const MAX_HEAD_DIM: usize = 4096;

impl Rope {
    /// Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before), of a family that turns all
    /// channels.
    ///
    /// # Errors
    /// An unknown `rope_type` is refused by name, a missing parameter by key.
    pub(crate) fn from_config(config: &Config, head_dim: usize, context: usize) -> Result<Self, ModelError> {
        let empty = Value::Null;
        let scaling = scaling(config, &empty)?;
        let key = "partial_rotary_factor";
        if let Some(share) = scaling.number(key)?.or(config.number(key)?).filter(|&f| f != 1.0) {
            return Err(unsupported(key, share));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(invalid("head_dim", format!("{head_dim} is odd, rotary embedding needs pairs")));
        }
        Self::read(config, "rope_theta", head_dim, context)
    }

    /// Gemma 3's frequencies of full and of sliding layers: an object each in `rope_parameters` (transformers 5), or
    /// `rope_theta` with `rope_scaling` and `rope_local_base_freq` (before).
    ///
    /// # Errors
    /// As [`from_config`](Self::from_config).
    pub(crate) fn full_and_sliding(
        config: &Config,
        head_dim: usize,
        context: usize,
    ) -> Result<Vec<Self>, ModelError> {
        let one = |kind, theta, default: f64, scaling: Option<&Value>| {
            let nested = config.get("rope_parameters").and_then(|p| p.get(kind)).or(scaling);
            let theta = config.number(theta)?.unwrap_or(default);
            let flat = serde_json::json!({"rope_theta": theta, "rope_parameters": nested});
            Self::from_config(&Config(&flat), head_dim, context)
        };
        Ok(vec![
            one("full_attention", "rope_theta", 1e6, config.get("rope_scaling"))?,
            one("sliding_attention", "rope_local_base_freq", 1e4, None)?,
        ])
    }

    /// The same for a family that turns the first channels of a head alone. What share of them stands in `rope_parameters`
    /// or at the key `share`, else it is the number there; `theta` is the key of the base outside `rope_parameters`.
    ///
    /// # Errors
    /// The same, and a share that leaves no pairs of channels.
    pub(crate) fn partial(
        config: &Config,
        theta: &str,
        share: (&str, f64),
        head_dim: usize,
        context: usize,
    ) -> Result<Self, ModelError> {
        let empty = Value::Null;
        let found = scaling(config, &empty)?.number("partial_rotary_factor")?.or(config.number(share.0)?);
        let found = found.unwrap_or(share.1);
        let channels = (head_dim as f64 * found) as usize;
        if !(0.0..=1.0).contains(&found) || channels == 0 || !channels.is_multiple_of(2) {
            let message = format!("{found} of {head_dim} channels is no number of pairs of channels");
            return Err(invalid(share.0, message));
        }
        Self::read(config, theta, channels, context)
    }

    /// The frequencies of this many channels.
    fn read(config: &Config, theta: &str, channels: usize, context: usize) -> Result<Self, ModelError> {
        // Beyond all published models; without a limit a short config could ask for tables of any size.
        if channels > MAX_HEAD_DIM {
            return Err(invalid("head_dim", format!("{channels} is more than {MAX_HEAD_DIM}")));
        }
        let empty = Value::Null;
        let scaling = scaling(config, &empty)?;
        let theta = scaling.number("rope_theta")?.or(config.number(theta)?).unwrap_or(10_000.0);
        if theta <= 1.0 {
            return Err(invalid("rope_theta", format!("{theta} is not above 1")));
        }
        let kind = match scaling.text("rope_type")? {
            Some(kind) => kind,
            None => scaling.text("type")?.unwrap_or("default"),
        };
        let pairs = channels / 2;
        let power = |i: usize| theta.powf(2.0 * i as f64 / channels as f64);
        let plain = (0..pairs).map(|i| 1.0 / power(i));
        let required = |key: &str| {
            scaling.number(key)?.filter(|&v| v > 0.0).ok_or_else(|| {
                invalid(
                    &format!("rope_parameters.{key}"),
                    format!("missing or not positive, rope_type {kind} needs it"),
                )
            })
        };
        let mut amplitude = 1.0;
        let frequencies: Vec<f64> = match kind {
            "default" => plain.collect(),
            "linear" => {
                let factor = required("factor")?;
                plain.map(|f| f / factor).collect()
            }
            "llama3" => {
                let (factor, low, high) =
                    (required("factor")?, required("low_freq_factor")?, required("high_freq_factor")?);
                let original = required("original_max_position_embeddings")?;
                if high <= low {
                    return Err(invalid(
                        "rope_parameters.high_freq_factor",
                        format!("{high} is not above {low}"),
                    ));
                }
                // Long waves are stretched, short ones stay, between them a linear blend (LLaMA 3.1).
                plain
                    .map(|f| {
                        let turns = original * f / (2.0 * PI);
                        let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        (1.0 - keep) * f / factor + keep * f
                    })
                    .collect()
            }
            "yarn" => {
                let factor = match scaling.number("factor")? {
                    Some(_) => required("factor")?,
                    None => context as f64 / required("original_max_position_embeddings")?,
                };
                let original = scaling
                    .number("original_max_position_embeddings")?
                    .filter(|&v| v > 0.0)
                    .unwrap_or(context as f64);
                amplitude = yarn_amplitude(&scaling, factor)?;
                let keep = yarn_ramp(&scaling, theta, channels, original)?;
                plain.zip(keep).map(|(f, keep)| f / factor * (1.0 - keep) + f * keep).collect()
            }
            // llama.cpp's form of any of these: what each plain frequency is divided by.
            "divided" => {
                let list = scaling.get("divisors").and_then(|v| v.as_array());
                let divisors: Vec<f64> = list.into_iter().flatten().filter_map(Value::as_f64).collect();
                if divisors.len() != pairs || !divisors.iter().all(|&d| d > 0.0) {
                    return Err(invalid(
                        "rope_parameters.divisors",
                        format!("not a list of {pairs} positive numbers"),
                    ));
                }
                plain.zip(divisors).map(|(f, d)| f / d).collect()
            }
            other => return Err(unsupported("rope_type", other)),
        };
        Ok(Self { frequencies: frequencies.into_iter().map(|f| f as f32).collect(), amplitude })
    }

    /// Sine and cosine tables for `positions` positions.
    pub fn tables(&self, positions: usize) -> Rotary {
        Rotary::new(&self.frequencies, self.amplitude, positions)
    }
}

/// The object with the parameters, or `empty`.
fn scaling<'a>(config: &Config<'a>, empty: &'a Value) -> Result<Config<'a>, ModelError> {
    match config.get("rope_parameters").or_else(|| config.get("rope_scaling")) {
        Some(value) if !value.is_object() => {
            Err(invalid("rope_parameters", format!("{value} is not an object")))
        }
        value => Ok(Config(value.unwrap_or(empty))),
    }
}

/// YaRN's attention factor, folded into the tables (arXiv 2309.00071, section 3.4).
fn yarn_amplitude(scaling: &Config, factor: f64) -> Result<f64, ModelError> {
    let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    if let Some(given) = scaling.number("attention_factor")? {
        return Ok(given);
    }
    let nonzero = |key| Ok::<_, ModelError>(scaling.number(key)?.filter(|&v| v != 0.0));
    Ok(match (nonzero("mscale")?, nonzero("mscale_all_dim")?) {
        (Some(m), Some(all)) => mscale(m) / mscale(all),
        _ => mscale(1.0),
    })
}

/// For each pair of channels, how much of its own frequency YaRN keeps: 1 for fast ones, 0 for slow ones.
fn yarn_ramp(scaling: &Config, theta: f64, dim: usize, original: f64) -> Result<Vec<f64>, ModelError> {
    let or =
        |key, default| Ok::<_, ModelError>(scaling.number(key)?.filter(|&v| v != 0.0).unwrap_or(default));
    let (fast, slow) = (or("beta_fast", 32.0)?, or("beta_slow", 1.0)?);
    let channel = |turns: f64| dim as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (channel(fast), channel(slow));
    if scaling.flag("truncate", true)? {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    Ok((0..dim / 2).map(|i| 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rope(config: Value) -> Result<Rope, ModelError> {
        Rope::from_config(&Config(&config), 8, 64)
    }

    #[test]
    fn theta_is_found_at_either_place() {
        let old = rope(json!({"rope_theta": 500.0})).unwrap();
        assert_eq!(
            old,
            rope(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}})).unwrap()
        );
        assert!((old.frequencies[1] - 500f32.powf(-0.25)).abs() < 1e-6);
    }

    #[test]
    fn frequencies_may_come_with_divisors() {
        let plain = rope(json!({"rope_theta": 500.0})).unwrap();
        let of = |divisors| {
            rope(
                json!({"rope_parameters": {"rope_type": "divided", "rope_theta": 500.0, "divisors": divisors}}),
            )
        };
        let divided = of(json!([1.0, 2.0, 4.0, 8.0])).unwrap();
        assert_eq!(divided.frequencies[0], plain.frequencies[0]);
        assert!((divided.frequencies[3] - plain.frequencies[3] / 8.0).abs() < 1e-9);
        assert!(of(json!([1.0])).unwrap_err().to_string().contains("4 positive numbers"));
    }

    #[test]
    fn heads_have_a_largest_size() {
        let error = Rope::from_config(&Config(&json!({})), 1 << 20, 64).unwrap_err().to_string();
        assert!(error.contains("head_dim"), "{error}");
    }

    #[test]
    fn an_unknown_type_is_refused_by_name() {
        let error =
            rope(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})).unwrap_err().to_string();
        assert!(error.contains("rope_type = dynamic"), "{error}");
    }

    #[test]
    fn a_missing_parameter_is_named() {
        let error =
            rope(json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})).unwrap_err().to_string();
        assert!(error.contains("low_freq_factor"), "{error}");
    }
}
