//! Moving factors and shifts of channels from the inputs of linear layers into what makes them.
//!
//! With a factor `s` and a shift `z` for each channel, `X ← (X − z) / s` in the producer and `W ← W · s`, `b ← b + W z` in the
//! layers that read `X` leave every product as it was.

use halfbyte_model::{Block, BlockSpec, Mlp, Producer, Projections, Sublayer, TapKind};
use std::collections::BTreeSet;

/// Where there is a way that has to be asked for.
const ADVICE: &str = "with migrate=true `quantize` keeps it beside the layer";

/// What is done to the channels of a producer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// `s`: what each channel is divided by.
    pub(crate) factors: Vec<f32>,
    /// `z`: what is subtracted first; empty for none.
    pub(crate) shifts: Vec<f32>,
}

impl Change {
    /// Nothing.
    pub(crate) fn none(channels: usize) -> Self {
        Self { factors: vec![1.0; channels], shifts: Vec::new() }
    }

    /// These factors and no shifts.
    pub(crate) fn scale(factors: Vec<f32>) -> Self {
        Self { factors, shifts: Vec::new() }
    }

    /// Whether it changes nothing.
    pub(crate) fn is_none(&self) -> bool {
        self.factors.iter().all(|&f| f == 1.0) && self.shifts.iter().all(|&z| z == 0.0)
    }
}

/// Where the factors of a tap's channels can go.
#[derive(Clone, Debug)]
pub(crate) struct Joint {
    /// The norm or linear layer that takes them.
    pub(crate) into: String,
    /// Its channels.
    pub(crate) channels: usize,
    /// For every channel of the tap the producer's channel that it comes from; `None` if they are the same.
    of: Option<Vec<usize>>,
    /// Why shifts cannot be folded too, if they cannot.
    pub(crate) no_shift: Option<String>,
    maker: Maker,
}

/// What makes the channels.
#[derive(Clone, Debug)]
enum Maker {
    Norm,
    /// A migration, which is not there yet.
    Migration,
    /// Rows of the linear layer at this tap and place.
    Rows {
        tap: usize,
        site: usize,
        rows: Vec<usize>,
    },
}

impl Joint {
    /// Where factors of tap `tap` can go, to a migration too if `migrate` allows it; else why they cannot, for people.
    pub(crate) fn of(spec: &BlockSpec, tap: usize, migrate: bool) -> Result<Self, String> {
        let readers = &spec.taps[tap].sites;
        let unbiased =
            readers.iter().find(|s| s.bias.is_none()).map(|s| format!("{} has no bias", last(&s.name)));
        let channels = spec.taps[tap].channels();
        let same = |into: String, maker, no_shift| Self { into, channels, of: None, no_shift, maker };
        let migration = spec.migration(tap).filter(|_| migrate);
        let migration = migration.map(|m| same(m.name, Maker::Migration, unbiased.clone()));
        match spec.producer(tap) {
            Producer::Norm(name) => {
                let Sublayer { before, inside, .. } = spec.around(tap);
                let norm = [before, inside].into_iter().flatten().find(|n| n.name == name);
                let rms = norm.is_some_and(|n| !n.has_bias());
                let no_bias = rms.then(|| format!("{} has no bias", last(&name)));
                Ok(same(name, Maker::Norm, no_bias.or(unbiased)))
            }
            Producer::Residual(norm) => migration.ok_or_else(|| {
                let norm = norm.as_deref().map_or("the norm before", last);
                format!("{norm} also feeds the residual stream, where nothing could undo it; {ADVICE}")
            }),
            Producer::Values => Ok(values(spec, unbiased)),
            Producer::Linear(name) => {
                let first = position(spec, TapKind::MlpInput).unwrap_or(0);
                let (site, from) = match spec.mlp {
                    Mlp::Gated => (1, 0),
                    _ => (0, channels),
                };
                let rows = (from..from + channels).collect();
                let no_shift = Some("the gate multiplies it".into());
                Ok(same(name, Maker::Rows { tap: first, site, rows }, no_shift))
            }
            Producer::Relu(name) => {
                let first = position(spec, TapKind::MlpInput).unwrap_or(0);
                let rows = (0..channels).collect();
                let no_shift = Some("a ReLU lets no shift pass".into());
                Ok(same(name, Maker::Rows { tap: first, site: 0, rows }, no_shift))
            }
            Producer::Function => migration.ok_or_else(|| {
                let function = format!("{:?}", spec.activation).to_lowercase();
                format!("{function} between the layers lets no factor pass; {ADVICE}")
            }),
            Producer::None => Err("nothing is known that makes it".into()),
        }
    }

    /// For every channel of the tap the producer's.
    pub(crate) fn source(&self, channel: usize) -> usize {
        self.of.as_ref().map_or(channel, |of| of[channel])
    }

    /// Numbers of the producer's channels for those of the tap.
    pub(crate) fn spread(&self, values: &[f32]) -> Vec<f32> {
        match &self.of {
            None => values.to_vec(),
            Some(of) => of.iter().map(|&c| values[c]).collect(),
        }
    }

    /// The largest of the tap's numbers for every channel of the producer.
    pub(crate) fn gather(&self, values: &[f32]) -> Vec<f32> {
        self.gather_by(values, f32::max)
    }

    /// The tap's numbers for every channel of the producer, where several come from one put together by `join`.
    pub(crate) fn gather_by(&self, values: &[f32], join: impl Fn(f32, f32) -> f32) -> Vec<f32> {
        let Some(of) = &self.of else { return values.to_vec() };
        let mut out: Vec<Option<f32>> = vec![None; self.channels];
        for (&c, &v) in of.iter().zip(values) {
            out[c] = Some(out[c].map_or(v, |before| join(before, v)));
        }
        out.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// Changes the producer and the readers of tap `tap`, and gives the names of the tensors that are new.
    pub(crate) fn fold(&self, block: &mut Block, tap: usize, change: &Change) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        if change.is_none() {
            return changed;
        }
        let factors = self.spread(&change.factors);
        let shifts = if change.shifts.is_empty() { Vec::new() } else { self.spread(&change.shifts) };
        for linear in &mut block.linears[tap] {
            let inputs = linear.site.inputs;
            if !shifts.is_empty() {
                let added = times(linear.weight_mut(), inputs, &shifts);
                if let Some(bias) = &mut linear.bias {
                    bias.iter_mut().zip(added).for_each(|(b, a)| *b = (f64::from(*b) + a) as f32);
                }
                changed.extend(linear.site.bias.clone());
            }
            halfbyte_tensor::scale_columns(linear.weight_mut(), &factors);
            changed.insert(linear.site.weight());
        }
        let shift = |c: usize| change.shifts.get(c).copied().unwrap_or(0.0);
        let turned = |bias: f32, c: usize| (bias - shift(c)) / change.factors[c];
        if let Maker::Migration = self.maker {
            block.add_migration(tap);
        }
        match &self.maker {
            Maker::Norm | Maker::Migration => {
                if let Some(norm) = block.norm_mut(&self.into) {
                    norm.weight.iter_mut().zip(&change.factors).for_each(|(w, s)| *w /= s);
                    norm.bias.iter_mut().enumerate().for_each(|(c, b)| *b = turned(*b, c));
                    changed.insert(format!("{}.weight", self.into));
                    if !norm.bias.is_empty() {
                        changed.insert(format!("{}.bias", self.into));
                    }
                }
            }
            Maker::Rows { tap, site, rows } => {
                let linear = &mut block.linears[*tap][*site];
                let inputs = linear.site.inputs;
                let weight = linear.weight_mut();
                for (&row, s) in rows.iter().zip(&change.factors) {
                    weight[row * inputs..(row + 1) * inputs].iter_mut().for_each(|w| *w /= s);
                }
                if let Some(bias) = &mut linear.bias {
                    rows.iter().enumerate().for_each(|(c, &row)| bias[row] = turned(bias[row], c));
                }
                changed.insert(linear.site.weight());
                changed.extend(linear.site.bias.clone());
            }
        }
        changed
    }
}

/// Where the values are made.
pub(crate) struct Values {
    /// The tap and the place there of the linear layer that makes them.
    pub(crate) tap: usize,
    pub(crate) site: usize,
    /// Its rows, head after head.
    pub(crate) rows: Vec<usize>,
}

impl Values {
    pub(crate) fn of(spec: &BlockSpec) -> Self {
        let shape = &spec.attention;
        let (dim, heads, kv_heads) = (shape.head_dim, shape.heads, shape.kv_heads);
        let (site, rows): (usize, Vec<usize>) = match spec.projections {
            Projections::Separate => (2, (0..kv_heads * dim).collect()),
            Projections::Stacked => (0, ((heads + kv_heads) * dim..(heads + 2 * kv_heads) * dim).collect()),
            Projections::PerHead => {
                (0, (0..kv_heads * dim).map(|c| (3 * (c / dim) + 2) * dim + c % dim).collect())
            }
        };
        Self { tap: position(spec, TapKind::AttentionInput).unwrap_or(0), site, rows }
    }
}

/// The value projection: attention mixes its rows by weights that sum to one, so that factors and shifts pass.
fn values(spec: &BlockSpec, unbiased: Option<String>) -> Joint {
    let shape = &spec.attention;
    let (dim, heads, kv_heads) = (shape.head_dim, shape.heads, shape.kv_heads);
    let Values { tap, site, rows } = Values::of(spec);
    let maker = &spec.taps[tap].sites[site];
    let no_shift = maker.bias.is_none().then(|| format!("{} has no bias", last(&maker.name))).or(unbiased);
    let shared = heads / kv_heads.max(1);
    let source = |c: usize| c / dim / shared.max(1) * dim + c % dim;
    Joint {
        into: maker.name.clone(),
        channels: kv_heads * dim,
        of: (shared > 1).then(|| (0..heads * dim).map(source).collect()),
        no_shift,
        maker: Maker::Rows { tap, site, rows },
    }
}

/// Last part of a layer's name.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn position(spec: &BlockSpec, kind: TapKind) -> Option<usize> {
    spec.taps.iter().position(|t| t.kind == kind)
}

/// `W z`, in f64.
pub(crate) fn times(weight: &[f32], inputs: usize, z: &[f32]) -> Vec<f64> {
    let dot = |row: &[f32]| row.iter().zip(z).map(|(w, z)| f64::from(*w) * f64::from(*z)).sum();
    weight.chunks_exact(inputs).map(dot).collect()
}
