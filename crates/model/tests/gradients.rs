//! Gradients of the blocks of every family: against differences, and against PyTorch's for one of them.

#![allow(clippy::unwrap_used)]

use halfbyte_checkpoint::{RawTensor, SafetensorsFile};
use halfbyte_formats::{Element, Granularity, InputQuantizer, Scheme};
use halfbyte_model::{Block, Gradients, Model, RotaryTables, Weight};
use halfbyte_tensor::{Layout, Matrix, mix};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn families() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(golden("")).unwrap().map(|e| e.unwrap().path());
    entries.filter(|d| d.is_dir()).collect()
}

/// Uniform numbers between −1 and 1.
fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
    let value = |i: usize| (mix(seed << 32 ^ i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    Matrix::new(rows, cols, (0..rows * cols).map(value).collect())
}

fn dot(a: &Matrix, b: &Matrix) -> f64 {
    a.data.iter().zip(&b.data).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn added(a: &Matrix, b: &Matrix, factor: f32) -> Matrix {
    Matrix::new(a.rows, a.cols, a.data.iter().zip(&b.data).map(|(a, b)| a + factor * b).collect())
}

fn zeros(block: &Block) -> Gradients {
    let of = |l: &halfbyte_model::Linear| Some(Matrix::zeros(l.site.outputs, l.site.inputs));
    block.linears.iter().map(|tap| tap.iter().map(of).collect()).collect()
}

fn set(block: &mut Block, tap: usize, layer: usize, weight: &Matrix) {
    block.linears[tap][layer].weight = Weight::Stored(RawTensor::F32(weight.data.clone()), weight.cols);
}

/// The gradient of `wanted · block(hidden)` by its own way back: of the weights and of the input.
fn gradients(
    block: &Block,
    hidden: &Matrix,
    wanted: &Matrix,
    rotary: &RotaryTables,
    layout: &Layout,
) -> (Gradients, Matrix) {
    let (out, trace) = block.forward_traced(hidden.clone(), rotary, layout);
    assert_eq!(out, block.forward(hidden.clone(), rotary, layout), "another forward pass");
    let mut weights = zeros(block);
    let input = block.backward(trace, wanted.clone(), rotary, layout, &mut weights, true).unwrap();
    (weights, input)
}

/// Puts factors and biases of channels wherever there is room for a migration, and counts them.
fn migrate(block: &mut Block) -> usize {
    let taps = block.spec.taps.len();
    let found = (0..taps).filter_map(|tap| Some((tap, block.spec.migration(tap)?.name)));
    let found: Vec<(usize, String)> = found.collect();
    for (tap, name) in &found {
        block.add_migration(*tap);
        let norm = block.norm_mut(name).unwrap();
        let numbers = random(2, norm.weight.len(), 11);
        norm.weight.iter_mut().zip(numbers.row(0)).for_each(|(w, v)| *w += 0.5 * v);
        norm.bias.copy_from_slice(numbers.row(1));
    }
    found.len()
}

#[test]
fn every_family_has_the_gradients_of_its_differences() {
    let (mut cases, mut migrations) = (0, 0);
    for dir in families() {
        let model = Model::open(&dir).unwrap();
        let architecture = &model.architecture;
        let rotary = architecture.rotary(13);
        let mut layout = Layout::sequence(13);
        layout.push(6, &[]);
        // The first block and the last: they differ where layers do.
        for (index, migrated) in [(0, false), (architecture.blocks.len() - 1, true)] {
            cases += 1;
            let mut block = model.block(index).unwrap();
            if migrated {
                migrations += migrate(&mut block);
            }
            assert!(block.gradients_refused().is_none());
            let hidden = random(layout.rows(), architecture.hidden, 1);
            let wanted = random(layout.rows(), architecture.hidden, 2);
            let (weights, input) = gradients(&block, &hidden, &wanted, &rotary, &layout);
            // Along the gradient, where the difference is largest, and along numbers that have nothing to do with it.
            let check = |what: &str, at: &Matrix, grad: &Matrix, scalar: &mut dyn FnMut(&Matrix) -> f64| {
                let norm = dot(grad, grad).sqrt();
                assert!(norm > 0.0, "{}: {what} has no gradient", dir.display());
                let step = 2e-3 * dot(at, at).sqrt();
                for seed in 0..2 {
                    let mut direction = random(at.rows, at.cols, 7);
                    if seed == 0 {
                        direction.data.iter_mut().zip(&grad.data).for_each(|(d, g)| *d = g * (1.5 + *d));
                    }
                    let length = (step / dot(&direction, &direction).sqrt()) as f32;
                    let mut change = |part: f32| {
                        let way = part * length;
                        let (up, down) = (added(at, &direction, way), added(at, &direction, -way));
                        (scalar(&up) - scalar(&down)) / f64::from(2.0 * part)
                    };
                    // Two differences, of which the third derivative has no part (Richardson).
                    let found = (4.0 * change(0.5) - change(1.0)) / 3.0;
                    let expected = dot(grad, &direction) * f64::from(length);
                    let error = (found - expected).abs() / (norm * step);
                    assert!(
                        error < 0.01,
                        "{} block {index}: {what}: {expected} for {found}, of {}",
                        dir.display(),
                        norm * step
                    );
                }
            };
            check("the input", &hidden, &input, &mut |at| {
                dot(&block.forward(at.clone(), &rotary, &layout), &wanted)
            });
            for tap in 0..block.linears.len() {
                for layer in 0..block.linears[tap].len() {
                    let name = block.linears[tap][layer].site.name.clone();
                    let weight = block.linears[tap][layer].weight.to_f32();
                    let grad = weights[tap][layer].as_ref().unwrap();
                    check(&name, &weight, grad, &mut |at| {
                        set(&mut block, tap, layer, at);
                        dot(&block.forward(hidden.clone(), &rotary, &layout), &wanted)
                    });
                    set(&mut block, tap, layer, &weight);
                }
            }
        }
    }
    assert!(cases >= 2 * 41, "{cases} blocks");
    assert!(migrations > 20, "{migrations} migrations");
}

#[test]
fn rounding_is_passed_straight_through() {
    let model = Model::open(&golden("llama")).unwrap();
    let architecture = &model.architecture;
    let (rotary, layout) = (architecture.rotary(16), Layout::sequence(16));
    let hidden = random(16, architecture.hidden, 1);
    let wanted = random(16, architecture.hidden, 2);
    let exact = gradients(&model.block(0).unwrap(), &hidden, &wanted, &rotary, &layout);
    // At 8 bits quantized inputs are close to what they were, and so are the gradients.
    let mut block = model.block(0).unwrap();
    for linear in block.linears.iter_mut().flatten() {
        let scheme = Scheme { dynamic: true, ..Scheme::new(Element::INT8, Granularity::Channel) };
        linear.input = Some(InputQuantizer::dynamic(scheme, 1.0, linear.site.inputs).unwrap());
    }
    let rounded = gradients(&block, &hidden, &wanted, &rotary, &layout);
    for (a, b) in exact.0.iter().flatten().zip(rounded.0.iter().flatten()) {
        let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
        let error = added(b, a, -1.0);
        assert!(error.data.iter().any(|v| *v != 0.0));
        assert!(dot(&error, &error) < 1e-3 * dot(a, a), "{} of {}", dot(&error, &error), dot(a, a));
    }
    // What needs no gradient gets none, and changes nothing in others.
    let mut some = zeros(&block);
    some[0][1] = None;
    let (_, trace) = block.forward_traced(hidden, &rotary, &layout);
    assert!(block.backward(trace, wanted, &rotary, &layout, &mut some, false).is_none());
    assert!(some[0][1].is_none() && some[0][2] == rounded.0[0][2] && some[3][0] == rounded.0[3][0]);
}

/// `tests/python/gradient_golden.py` wrote the file.
#[test]
fn gradients_are_those_of_pytorch() {
    let (dir, file) = (golden("gemma2"), golden("gemma2_gradients.safetensors"));
    let model = Model::open(&dir).unwrap();
    let expected = SafetensorsFile::open(&file).unwrap();
    let read = |name: &str| {
        let shape = expected.find(name).unwrap().shape.clone();
        Matrix::new(shape[0], shape[1], expected.read_f32(name, &shape).unwrap())
    };
    let (hidden, wanted) = (read("hidden"), read("wanted"));
    let layout = Layout::sequence(hidden.rows);
    let rotary = model.architecture.rotary(hidden.rows);
    let block = model.block(0).unwrap();
    let (weights, input) = gradients(&block, &hidden, &wanted, &rotary, &layout);
    let close = |name: &str, got: &Matrix, expected: &Matrix| {
        let error = added(got, expected, -1.0);
        let relative = (dot(&error, &error) / dot(expected, expected)).sqrt();
        assert!(relative < 1e-5, "{name}: off by {relative:e}");
    };
    close("the input", &input, &read("input"));
    for (linear, grad) in block.linears.iter().flatten().zip(weights.iter().flatten()) {
        close(&linear.site.name, grad.as_ref().unwrap(), &read(&linear.site.name));
    }
}
