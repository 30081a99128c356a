//! Values of options that need more than a type: bounds, units, names.

use halfbyte_data::Glue;
use halfbyte_formats::{FormatError, Scheme};
use std::time::Duration;

/// The least accuracy that is good enough.
#[derive(Clone, Debug)]
pub(crate) struct MinAccuracy {
    /// The mean over all tasks if `None`.
    pub(crate) task: Option<String>,
    pub(crate) least: f64,
}

pub(super) fn at_least(least: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(n) if n >= least => Ok(n),
        _ => Err(format!("not a whole number of at least {least}")),
    }
}

/// More than any machine that this is for has.
const THREADS: usize = 256;

pub(super) fn threads(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| (1..=THREADS).contains(n))
        .ok_or_else(|| format!("not a whole number from 1 to {THREADS}"))
}

pub(super) fn at_least_zero(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|v: &f64| v.is_finite() && *v >= 0.0)
        .ok_or_else(|| "not a number of at least 0".into())
}

pub(super) fn glue(text: &str) -> Result<&'static Glue, String> {
    Glue::find(text).ok_or_else(|| {
        let known: Vec<&str> = Glue::all().iter().map(|g| g.name).collect();
        format!("none of {}", known.join(", "))
    })
}

/// `0.45`, or `piqa=0.6`.
pub(super) fn min_accuracy(text: &str) -> Result<MinAccuracy, String> {
    let (task, share) = match text.rsplit_once('=') {
        Some((task, share)) => (Some(task.to_string()), share),
        None => (None, text),
    };
    let least = share.parse().ok().filter(|v| (0.0..=1.0).contains(v));
    least
        .map(|least| MinAccuracy { task, least })
        .ok_or_else(|| "not a share between 0 and 1, such as 0.45 or piqa=0.6".into())
}

pub(super) fn bits(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|b| [4, 6, 8, 16].contains(b)).ok_or_else(|| "not one of 4, 6, 8 and 16".into())
}

/// A scheme, or a name for one.
pub(super) fn kv_cache(text: &str) -> Result<Scheme, String> {
    let scheme = match text {
        "fp8" => "e4m3fn/channel/dynamic",
        "fp4" => "e2m1/group16/e4m3/dynamic",
        scheme => scheme,
    };
    scheme.parse().map_err(|e: FormatError| format!("{e}; or fp8 or fp4"))
}

/// A length of time such as `90s`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "not a time such as 90s, 10m or 1.5h".to_string();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())
}

/// `1GiB`, `512MiB`, `2GB`, or bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || "not a size such as 512MiB, 2GB or 1000000".to_string();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Ok((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size("1.5 kb"), Ok(1500));
        assert_eq!(size("77"), Ok(77));
        assert!(size("1 GiBs").is_err() && size("GiB").is_err() && size("").is_err());
    }
}
