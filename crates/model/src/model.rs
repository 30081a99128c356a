//! A model folder, full precision or quantized, opened for computing block by block.

use crate::architectures::{Architecture, NormSpec, Site, describe};
use crate::block::{Block, Norms, normed};
use crate::linear::{Linear, Weight};
use crate::{ModelError, Tokenizer};
use halfbyte_checkpoint::{Checkpoint, Manifest, StoredLayer};
use halfbyte_tensor::{Matrix, Precision};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A model folder. Nothing but headers is read until a part is asked for, so that memory holds one block at a time.
pub struct Model {
    /// What the config describes.
    pub architecture: Architecture,
    /// The folder's tensors.
    pub checkpoint: Checkpoint,
    /// What is quantized and how; `None` for an ordinary checkpoint.
    pub manifest: Option<Manifest>,
    /// In what form the weights are stored, where they are the values of a quantized model and are computed with as such.
    pub values_of: Option<String>,
    /// A tokenizer.json from elsewhere.
    pub tokenizer_file: Option<PathBuf>,
}

impl Model {
    /// Opens a folder and checks that every tensor the architecture needs is there with the right shape.
    ///
    /// # Errors
    /// Whatever is wrong with the files or the config, by file, key or tensor.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(dir)?;
        let manifest = Manifest::of(&checkpoint)?;
        let architecture = describe(checkpoint.config())?;
        let values_of = checkpoint.block_types().map(|types| format!("GGUF {types}"));
        let model = Self { architecture, checkpoint, manifest, values_of, tokenizer_file: None };
        model.check()?;
        Ok(model)
    }

    /// The same model with its quantized weights as values in f32, as if it were an ordinary checkpoint, so that it can be
    /// quantized anew. What it does to inputs is forgotten.
    ///
    /// # Errors
    /// A weight is too large for this machine.
    pub fn dequantized(self) -> Result<Self, ModelError> {
        let Some(manifest) = self.manifest else { return Ok(self) };
        let a = &self.architecture;
        let name = manifest.recipe.get("name").and_then(|n| n.as_str()).unwrap_or("unnamed");
        let values_of = Some(name.to_owned());
        let mut shapes: HashMap<&str, [usize; 2]> = HashMap::new();
        shapes.insert(a.embedding.trim_end_matches(".weight"), [a.vocabulary, a.hidden]);
        for site in a.blocks.iter().flat_map(|b| &b.taps).flat_map(|t| &t.sites).chain([&a.head]) {
            shapes.insert(&site.name, [site.outputs, site.inputs]);
        }
        let checkpoint = self.checkpoint.dequantized(manifest, |name| shapes.get(name).copied())?;
        let model = Self { checkpoint, manifest: None, values_of, ..self };
        model.check()?;
        Ok(model)
    }

    /// The folder's tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        match &self.tokenizer_file {
            Some(path) => Tokenizer::from_file(path),
            None => Tokenizer::open(self.checkpoint.dir()),
        }
    }

    fn check(&self) -> Result<(), ModelError> {
        let a = &self.architecture;
        self.check_weight(a.embedding.trim_end_matches(".weight"), a.vocabulary, a.hidden)?;
        self.checkpoint.require(&a.final_norm.name, &[a.hidden])?;
        if self.head_is_stored() {
            self.check_weight(&a.head.name, a.head.outputs, a.head.inputs)?;
        }
        for block in &a.blocks {
            self.checkpoint.require(&block.attention_norm.name, &[a.hidden])?;
            self.checkpoint.require(&block.mlp_norm.name, &[a.hidden])?;
            if let Some((q, k)) = &block.query_key_norm {
                self.checkpoint.require(&q.name, &[block.attention.head_dim])?;
                self.checkpoint.require(&k.name, &[block.attention.head_dim])?;
            }
            for site in block.taps.iter().flat_map(|t| &t.sites) {
                self.check_weight(&site.name, site.outputs, site.inputs)?;
                if site.bias {
                    self.checkpoint.require(&format!("{}.bias", site.name), &[site.outputs])?;
                }
            }
        }
        Ok(())
    }

    fn check_weight(&self, name: &str, rows: usize, cols: usize) -> Result<(), ModelError> {
        let quantized = match &self.manifest {
            Some(manifest) => manifest.check(&self.checkpoint, name, rows, cols)?,
            None => false,
        };
        if !quantized {
            self.checkpoint.require(&format!("{name}.weight"), &[rows, cols])?;
        }
        Ok(())
    }

    /// Whether the output layer has a tensor of its own: it is untied, or was quantized apart from the embedding.
    fn head_is_stored(&self) -> bool {
        let name = &self.architecture.head.name;
        !self.architecture.tied || self.manifest.as_ref().is_some_and(|m| m.layers.contains_key(name))
    }

    fn linear(&self, site: &Site) -> Result<Linear, ModelError> {
        let bias_name = format!("{}.bias", site.name);
        let bias = site.bias.then(|| self.checkpoint.read_f32(&bias_name, &[site.outputs])).transpose()?;
        let (weight, input) = match self.stored_layer(&site.name, site.outputs, site.inputs)? {
            Some(stored) => {
                let weight = match stored.weight {
                    Some(codes) => Weight::Quantized(codes),
                    None => self.stored(&format!("{}.weight", site.name), site.outputs, site.inputs)?,
                };
                (weight, stored.input)
            }
            None => (self.stored(&format!("{}.weight", site.name), site.outputs, site.inputs)?, None),
        };
        Ok(Linear { site: site.clone(), weight, bias, input, precision: Precision::F32 })
    }

    /// Codes and quantizer of layer `name`, a `[rows, cols]` weight; `None` if it is not quantized.
    ///
    /// # Errors
    /// When its tensors cannot be read or hold what their scheme cannot have.
    pub fn stored_layer(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<StoredLayer>, ModelError> {
        match &self.manifest {
            Some(manifest) => Ok(manifest.read(&self.checkpoint, name, rows, cols)?),
            None => Ok(None),
        }
    }

    fn stored(&self, tensor: &str, rows: usize, cols: usize) -> Result<Weight, ModelError> {
        Ok(Weight::Stored(self.checkpoint.read_raw(tensor, &[rows, cols])?, cols))
    }

    fn norm(&self, spec: &NormSpec, channels: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.checkpoint.read_f32(&spec.name, &[channels])?)
    }

    /// The embedding table.
    ///
    /// # Errors
    /// When the tensor cannot be read or holds NaN or infinity.
    pub fn embedding(&self) -> Result<Embedding, ModelError> {
        let a = &self.architecture;
        let name = a.embedding.trim_end_matches(".weight");
        let codes = self.stored_layer(name, a.vocabulary, a.hidden)?.and_then(|layer| layer.weight);
        let table = match codes {
            Some(codes) => Weight::Quantized(codes),
            None => self.stored(&a.embedding, a.vocabulary, a.hidden)?,
        };
        Ok(Embedding { table, vocabulary: a.vocabulary, hidden: a.hidden })
    }

    /// Block `layer` with its weights.
    ///
    /// # Errors
    /// When a tensor cannot be read or holds NaN or infinity.
    pub fn block(&self, layer: usize) -> Result<Block, ModelError> {
        let spec = &self.architecture.blocks[layer];
        let hidden = self.architecture.hidden;
        let query_key = match &spec.query_key_norm {
            Some((q, k)) => {
                Some((self.norm(q, spec.attention.head_dim)?, self.norm(k, spec.attention.head_dim)?))
            }
            None => None,
        };
        let norms = Norms {
            attention: self.norm(&spec.attention_norm, hidden)?,
            mlp: self.norm(&spec.mlp_norm, hidden)?,
            query_key,
        };
        let tap_linears =
            |tap: &crate::Tap| tap.sites.iter().map(|s| self.linear(s)).collect::<Result<Vec<_>, _>>();
        let linears = spec.taps.iter().map(tap_linears).collect::<Result<_, _>>()?;
        Ok(Block { spec: spec.clone(), linears, norms })
    }

    /// The last norm and the output layer.
    ///
    /// # Errors
    /// When a tensor cannot be read or holds NaN or infinity.
    pub fn head(&self) -> Result<Head, ModelError> {
        let a = &self.architecture;
        let linear = if self.head_is_stored() {
            self.linear(&a.head)?
        } else {
            let weight = self.embedding()?.table;
            Linear { site: a.head.clone(), weight, bias: None, input: None, precision: Precision::F32 }
        };
        Ok(Head { norm: self.norm(&a.final_norm, a.hidden)?, spec: a.final_norm.clone(), linear })
    }
}

/// The embedding table.
#[derive(Debug)]
pub struct Embedding {
    /// `[vocabulary, hidden]`.
    pub table: Weight,
    vocabulary: usize,
    hidden: usize,
}

impl Embedding {
    /// The same table in another form, such as its codes.
    pub fn with_table(&self, table: Weight) -> Self {
        Self { table, vocabulary: self.vocabulary, hidden: self.hidden }
    }

    /// The rows of `tokens`: the first block's input `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`ModelError::Token`] for an id outside the vocabulary.
    pub fn embed(&self, tokens: &[u32]) -> Result<Matrix, ModelError> {
        let mut out = Matrix::zeros(tokens.len(), self.hidden);
        for (i, &token) in tokens.iter().enumerate() {
            if token as usize >= self.vocabulary {
                return Err(ModelError::Token { token, vocabulary: self.vocabulary });
            }
            self.table.read_row(token as usize, out.row_mut(i));
        }
        Ok(out)
    }
}

/// The last norm and the output layer.
#[derive(Debug)]
pub struct Head {
    /// Weight of the norm.
    norm: Vec<f32>,
    spec: NormSpec,
    /// The output layer.
    pub linear: Linear,
}

impl Head {
    /// The output layer's input for the last block's output, both `[tokens, hidden]`.
    pub fn input(&self, hidden: &Matrix) -> Matrix {
        normed(hidden, &self.norm, &self.spec)
    }

    /// Logits `[tokens, vocabulary]` for the last block's output `[tokens, hidden]`.
    pub fn logits(&self, hidden: &Matrix) -> Matrix {
        self.linear.forward(&self.input(hidden))
    }
}
