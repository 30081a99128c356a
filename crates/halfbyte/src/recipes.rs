//! From options to a recipe.

use crate::cli::{GridChoice, RecipeArgs};
use crate::fail::Failure;
use anyhow::Context;
use halfbyte_checkpoint::LayerScheme;
use halfbyte_formats::ScaleFormat;
use halfbyte_model::{Architecture, Task};
use halfbyte_quantize::search::Grid;
use halfbyte_quantize::{AutoTarget, Method, Recipe, load_recipe};

/// The recipe of the options, for a model with these layers. With calibration data automatic block scales look at the inputs, which
/// is better by far (docs/formats.md).
pub(crate) fn chosen(
    args: &RecipeArgs,
    architecture: &Architecture,
    calibrated: bool,
) -> anyhow::Result<Recipe> {
    if args.recipe == AUTO {
        return Err(Failure::new("the recipe auto is for `quantize`, which tries several")
            .hint("name one of them; `halfbyte recipes` lists all")
            .into());
    }
    let mut recipe = load_recipe(&args.recipe)?;
    if let Some(keep) = &args.keep {
        keep.iter().try_for_each(|part| check_part("--keep", part, architecture))?;
        recipe.keep.clone_from(keep);
    }
    check_parts(&recipe, architecture)?;
    check_search(args, &recipe)?;
    let defaults = Recipe::default();
    match args.grid {
        Some(GridChoice::Published) => {
            (recipe.weight_grid, recipe.activation_grid) = (Grid::PUBLISHED, Grid::PUBLISHED);
        }
        Some(GridChoice::Maxval) => {
            (recipe.weight_grid, recipe.activation_grid) = (defaults.weight_grid, defaults.activation_grid);
        }
        None => {}
    }
    if let Some(bits) = args.embedding_bits {
        recipe.embedding_bits = bits;
    }
    if let Some(bits) = args.attention_bits {
        recipe.attention_bits = bits;
    }
    if args.kv_cache.is_some() {
        recipe.kv_scheme = args.kv_cache;
    }
    if args.max_bits.is_some() {
        recipe.max_bits = args.max_bits;
    }
    if let Some(inputs) = args.calibrate {
        recipe.calibration = inputs.into();
    }
    // Only a language model reads any sequence of tokens as a text.
    let language_model = architecture.head.task == Task::LanguageModel;
    match args.coverage {
        Some(coverage) => {
            check_coverage(coverage, architecture)?;
            recipe.coverage = coverage;
        }
        None if !language_model => recipe.coverage = 0.0,
        None => {}
    }
    match args.scales {
        Some(_) if recipe.method != Method::Scheme => {
            return Err(Failure::new(format!(
                "--scales is for fixed schemes, and {} searches its own",
                recipe.name
            ))
            .hint("the schemes are the recipes such as nvfp4-w4a4 in `halfbyte recipes`")
            .into());
        }
        Some(scales) => recipe.scales = scales.into(),
        None => recipe.settle_scales(calibrated),
    }
    if let Some(rounds) = args.rounds {
        recipe.rounds = rounds;
    }
    if let Some(search) = args.search {
        recipe.search = search.into();
    }
    if let Some(seed) = args.seed {
        recipe.seed = seed;
    }
    recipe.check()?;
    Ok(recipe)
}

/// Refuses options of the search where nothing is searched, which would change nothing but what the run is taken for.
fn check_search(args: &RecipeArgs, recipe: &Recipe) -> anyhow::Result<()> {
    let f32_scales = |s: &LayerScheme| s.weight.is_some_and(|w| w.scale == ScaleFormat::F32);
    let clips = recipe.method == Method::Scheme && recipe.choices().iter().any(f32_scales);
    let searches = recipe.method == Method::Fpq;
    for (option, given, meant) in [
        ("--rounds", args.rounds.is_some(), searches),
        ("--search", args.search.is_some(), searches),
        ("--grid", args.grid.is_some(), searches || clips),
    ] {
        if given && !meant {
            return Err(Failure::new(format!(
                "{option} is for recipes that search, and {} has nothing to search with it",
                recipe.name
            ))
            .hint("leave it out, or take one of the recipes fpq, fpq-baseline and fpq-published")
            .into());
        }
    }
    Ok(())
}

/// Checks that windows of drawn tokens mean anything to the model.
pub(crate) fn check_coverage(coverage: f32, architecture: &Architecture) -> anyhow::Result<()> {
    match coverage > 0.0 && architecture.head.task != Task::LanguageModel {
        true => Err(Failure::new("--coverage draws tokens for language models, and this is none").into()),
        false => Ok(()),
    }
}

/// What `--recipe` is called that tries several.
pub(crate) const AUTO: &str = "auto";

/// The recipes that `auto` tries for a target, with all other options.
pub(crate) fn candidates(
    target: AutoTarget,
    args: &RecipeArgs,
    architecture: &Architecture,
) -> anyhow::Result<Vec<Recipe>> {
    target.recipes(architecture, |name| {
        chosen(&RecipeArgs { recipe: name.into(), ..args.clone() }, architecture, true)
    })
}

/// Checks the names that a recipe says something of; what all models have is no mistake where one has not.
pub(crate) fn check_parts(recipe: &Recipe, architecture: &Architecture) -> anyhow::Result<()> {
    let kept = recipe.keep.iter().filter(|k| !["lm_head", "embedding"].contains(&k.as_str()));
    let parts = kept
        .map(|part| ("keep", part))
        .chain(recipe.layer_bits.keys().map(|part| ("layer_bits", part)))
        .chain(recipe.schemes.keys().map(|part| ("schemes", part)));
    for (field, part) in parts {
        check_part(field, part, architecture).with_context(|| format!("recipe {}", recipe.name))?;
    }
    Ok(())
}

/// A misspelt layer would be quantized silently, or in another way.
fn check_part(field: &str, part: &str, architecture: &Architecture) -> anyhow::Result<()> {
    let only = Recipe { keep: vec![part.into()], ..Recipe::default() };
    let mut sites = architecture.sites().chain([architecture.embedding()]);
    let matches = !part.is_empty() && sites.any(|s| only.keeps(s));
    if matches {
        return Ok(());
    }
    let first = architecture.blocks.first().map_or("", |b| &b.taps[0].sites[0].name);
    Err(Failure::new(format!("{field} {part:?} matches no layer of this model"))
        .hint(format!(
            "layers have names such as {first} and {}; a part of a name will do",
            architecture.head.output().map_or("embedding", |s| &s.name)
        ))
        .into())
}
