//! Transforms as text: a name and settings, `smooth-quant:alpha=0.6:taps=all`.

use super::{Taps, Transform, TransformKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// All names with what their settings are, for help and complaints.
pub const TRANSFORMS: [(&str, &str); 6] = [
    ("smooth-quant", "alpha=0 to 1, or alpha=search; default 0.5"),
    ("os-plus", "steps=thresholds of the grid, 1 to 10000, default 100; shift=true|false, default true"),
    ("awq", ""),
    ("pow2", ""),
    ("rotate", "block=channels that are mixed, default all"),
    ("hadamard-heads", "block=channels of a head that are mixed, default all"),
];

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TransformKind::SmoothQuant { alpha: Some(alpha) } if alpha == ALPHA => write!(f, "smooth-quant")?,
            TransformKind::SmoothQuant { alpha: Some(alpha) } => write!(f, "smooth-quant:alpha={alpha}")?,
            TransformKind::SmoothQuant { alpha: None } => write!(f, "smooth-quant:alpha=search")?,
            TransformKind::OsPlus { steps, shift } => {
                write!(f, "os-plus")?;
                if steps != STEPS {
                    write!(f, ":steps={steps}")?;
                }
                if !shift {
                    write!(f, ":shift=false")?;
                }
            }
            TransformKind::Awq => write!(f, "awq")?,
            TransformKind::Pow2 => write!(f, "pow2")?,
            TransformKind::Rotate { block } => write_block(f, "rotate", block)?,
            TransformKind::HadamardHeads { block } => write_block(f, "hadamard-heads", block)?,
        }
        match (self.taps, self.kind.default_taps()) {
            (a, b) if a == b => Ok(()),
            (Taps::All, _) => write!(f, ":taps=all"),
            (Taps::Norms, _) => write!(f, ":taps=norms"),
        }?;
        if self.migrate { write!(f, ":migrate=true") } else { Ok(()) }
    }
}

fn write_block(f: &mut fmt::Formatter<'_>, name: &str, block: Option<usize>) -> fmt::Result {
    write!(f, "{name}")?;
    block.map_or(Ok(()), |block| write!(f, ":block={block}"))
}

const ALPHA: f32 = 0.5;
const STEPS: usize = 100;

impl TransformKind {
    /// As published: SmoothQuant and Outlier Suppression+ at norms, the others wherever they can.
    fn default_taps(self) -> Taps {
        match self {
            Self::SmoothQuant { .. } | Self::OsPlus { .. } => Taps::Norms,
            Self::Awq | Self::Pow2 | Self::Rotate { .. } | Self::HadamardHeads { .. } => Taps::All,
        }
    }
}

impl FromStr for Transform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let kind = match name {
            "smooth-quant" => TransformKind::SmoothQuant { alpha: Some(ALPHA) },
            "os-plus" => TransformKind::OsPlus { steps: STEPS, shift: true },
            "awq" => TransformKind::Awq,
            "pow2" => TransformKind::Pow2,
            "rotate" => TransformKind::Rotate { block: None },
            "hadamard-heads" => TransformKind::HadamardHeads { block: None },
            _ => {
                let known: Vec<&str> = TRANSFORMS.iter().map(|t| t.0).collect();
                return Err(format!("there is no transform {name:?}; there are {}", known.join(", ")));
            }
        };
        let mut transform = Self { kind, taps: kind.default_taps(), migrate: false };
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            if text.split(':').skip(1).filter(|p| p.split('=').next() == Some(key)).count() > 1 {
                return Err(format!("{text} says {key} twice"));
            }
            transform.set(key, value).ok_or_else(|| {
                let settings = TRANSFORMS.iter().find(|t| t.0 == name).map_or("", |t| t.1);
                let taps =
                    if transform.looks_at_inputs() { "taps=norms|all; migrate=true|false" } else { "" };
                let own: Vec<&str> = [settings, taps].into_iter().filter(|s| !s.is_empty()).collect();
                format!("{name} has no setting {part:?}; it has {}", own.join("; "))
            })?;
        }
        Ok(transform)
    }
}

impl Transform {
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let scales = self.looks_at_inputs();
        match (key, &mut self.kind) {
            ("taps", _) if scales => {
                self.taps = match value {
                    "norms" => Taps::Norms,
                    "all" => Taps::All,
                    _ => return None,
                }
            }
            ("migrate", _) if scales => self.migrate = value.parse().ok()?,
            ("alpha", TransformKind::SmoothQuant { alpha }) => {
                *alpha = match value {
                    "search" => None,
                    number => Some(number.parse().ok().filter(|a| (0.0..=1.0).contains(a))?),
                }
            }
            ("steps", TransformKind::OsPlus { steps, .. }) => {
                *steps = value.parse().ok().filter(|n| (1..=10_000).contains(n))?;
            }
            ("block", TransformKind::Rotate { block } | TransformKind::HadamardHeads { block }) => {
                *block = Some(value.parse().ok().filter(|&n: &usize| n > 1)?);
            }
            ("shift", TransformKind::OsPlus { shift, .. }) => *shift = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

impl Serialize for Transform {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Transform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_and_is_written_the_same() {
        for (name, _) in TRANSFORMS {
            assert_eq!(name.parse::<Transform>().unwrap().to_string(), name);
        }
        for text in [
            "smooth-quant:alpha=search:taps=all",
            "os-plus:steps=20:shift=false",
            "pow2:taps=norms",
            "os-plus:taps=all:migrate=true",
            "rotate:block=32",
            "hadamard-heads:block=16",
        ] {
            assert_eq!(text.parse::<Transform>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn complaints_say_what_there_is() {
        let complaint = |text: &str| text.parse::<Transform>().unwrap_err();
        assert!(complaint("smoothquant").contains("smooth-quant, os-plus"));
        assert!(complaint("smooth-quant:alpha=2").contains("alpha=0 to 1"));
        assert!(complaint("rotate:taps=all").ends_with("it has block=channels that are mixed, default all"));
        assert!(complaint("awq:steps=3").contains("taps=norms|all; migrate=true|false"));
        assert!(complaint("rotate:migrate=true").contains("no setting \"migrate=true\""));
    }
}
