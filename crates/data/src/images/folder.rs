//! Images in a folder for each class.

use super::{Processor, decode};
use crate::labels::Labels;
use crate::{DataError, Examples, Gold, Selection};
use halfbyte_model::Input;
use std::fs;
use std::path::{Path, PathBuf};

/// Images and their classes; they are read when they are wanted.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    dir: PathBuf,
    processor: Processor,
    /// By class folder and file name, each with its class.
    files: Vec<(PathBuf, Option<usize>)>,
}

impl ImageFolder {
    /// Lists `DIR/CLASS/*.jpg|jpeg|png`. A class folder has the name of one of the model's classes; where none does,
    /// their numbers are taken too. A selection without a seed takes the first images of every class in turn.
    ///
    /// # Errors
    /// [`DataError::File`] for folders that are no classes, files that are no such images, and folders without any.
    pub fn open(
        dir: &Path,
        labels: &Labels,
        processor: Processor,
        selection: Selection,
    ) -> Result<Self, DataError> {
        let (folders, files) = list(dir)?;
        if let Some(file) = files.iter().find(|f| is_image(f) || folders.is_empty()) {
            let message = "a file that lies in no class folder; images are DIR/CLASS/NAME.jpg or .png, and \
                           CLASS one of the model's classes";
            return Err(DataError::file(file, message));
        }
        if folders.is_empty() {
            return Err(DataError::file(
                dir,
                "no class folders in it; images are DIR/CLASS/NAME.jpg or .png",
            ));
        }
        let classes = classes(&folders, labels)?;
        let mut by_class = Vec::with_capacity(folders.len());
        for (folder, class) in folders.iter().zip(classes) {
            let (inner, images) = list(folder)?;
            if let Some(odd) = inner.first().or_else(|| images.iter().find(|f| !is_image(f))) {
                let message = "neither a JPEG nor a PNG file by its name (.jpg, .jpeg, .png); convert it, or move it away";
                return Err(DataError::file(odd, message));
            }
            if images.is_empty() {
                return Err(DataError::file(folder, "no images in it; remove the folder, or give it some"));
            }
            by_class.push(images.into_iter().map(|file| (file, Some(class))).collect::<Vec<_>>());
        }
        let files = select(by_class, selection);
        Ok(Self { dir: dir.into(), processor, files })
    }

    /// Lists the images of `dir` and of the folders in it, whatever their classes: what a network is calibrated on.
    ///
    /// # Errors
    /// [`DataError::File`] when a folder cannot be listed, or there are none.
    pub fn unlabelled(dir: &Path, processor: Processor, selection: Selection) -> Result<Self, DataError> {
        let (folders, files) = list(dir)?;
        let mut groups = vec![files];
        for folder in &folders {
            groups.push(list(folder)?.1);
        }
        let images =
            |files: Vec<PathBuf>| files.into_iter().filter(|f| is_image(f)).map(|f| (f, None)).collect();
        let files = select(groups.into_iter().map(images).collect(), selection);
        if files.is_empty() {
            return Err(DataError::file(dir, "no images in it or in its folders (.jpg, .jpeg, .png)"));
        }
        Ok(Self { dir: dir.into(), processor, files })
    }
}

/// Folders and files of `dir`, each by name, without hidden ones.
fn list(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DataError> {
    let fail = |e: std::io::Error| DataError::file(dir, format!("cannot list it: {e}"));
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        if path.is_dir() { folders.push(path) } else { files.push(path) }
    }
    folders.sort_unstable();
    files.sort_unstable();
    Ok((folders, files))
}

fn is_image(file: &Path) -> bool {
    let ending = file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    matches!(ending.as_deref(), Some("jpg" | "jpeg" | "png"))
}

/// The class of every folder.
fn classes(folders: &[PathBuf], labels: &Labels) -> Result<Vec<usize>, DataError> {
    let name =
        |folder: &Path| folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let number = |folder: &PathBuf| name(folder).parse().ok().filter(|&n: &usize| n < labels.count());
    let found: Vec<Result<usize, String>> = folders.iter().map(|f| labels.find(&name(f))).collect();
    let numbers: Option<Vec<usize>> = folders.iter().map(number).collect();
    match numbers {
        Some(numbers) if found.iter().all(Result::is_err) => Ok(numbers),
        _ => {
            let named = folders.iter().zip(found);
            let class = |(folder, class): (&PathBuf, Result<usize, String>)| {
                class.map_err(|message| {
                    let todo = "name the folders as id2label names the classes, or give all of them the numbers of classes";
                    DataError::file(folder, format!("{message}; {todo}"))
                })
            };
            let classes = named.map(class).collect::<Result<Vec<_>, _>>()?;
            for (i, class) in classes.iter().enumerate() {
                if classes[..i].contains(class) {
                    let message = "another folder is the same class; put their images into one";
                    return Err(DataError::file(&folders[i], message));
                }
            }
            Ok(classes)
        }
    }
}

/// The chosen images, class by class.
fn select<T: Clone>(by_class: Vec<Vec<T>>, selection: Selection) -> Vec<T> {
    let total = by_class.iter().map(Vec::len).sum();
    match selection {
        Selection { limit: Some(limit), seed: None } if limit < total => {
            // So many of every class, and one more of the first ones, as far as they have them.
            let mut counts = vec![0; by_class.len()];
            let mut left = limit;
            while left > 0 {
                for (count, class) in counts.iter_mut().zip(&by_class) {
                    if left > 0 && *count < class.len() {
                        (*count, left) = (*count + 1, left - 1);
                    }
                }
            }
            by_class.into_iter().zip(counts).flat_map(|(class, n)| class.into_iter().take(n)).collect()
        }
        _ => {
            let all: Vec<_> = by_class.into_iter().flatten().collect();
            selection.of(all.len()).into_iter().map(|i| all[i].clone()).collect()
        }
    }
}

impl Examples for ImageFolder {
    fn name(&self) -> String {
        self.dir.file_name().unwrap_or(self.dir.as_os_str()).to_string_lossy().into_owned()
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn gold(&self, i: usize) -> Option<Gold> {
        self.files[i].1.map(Gold::Class)
    }

    fn place(&self, i: usize) -> String {
        self.files[i].0.display().to_string()
    }

    fn load(&self, i: usize) -> Result<Input, DataError> {
        let path = &self.files[i].0;
        let image = decode(path)?;
        self.processor.apply(&image).map_err(|message| DataError::file(path, message))
    }

    fn key(&self, i: usize) -> Result<String, DataError> {
        let path = &self.files[i].0;
        let bytes = fs::read(path).map_err(|e| DataError::file(path, format!("cannot read it: {e}")))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.processor.describe().as_bytes());
        hasher.update(&bytes);
        Ok(hasher.finalize().to_hex()[..32].to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::tests::labels;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        dir
    }

    fn processor() -> Processor {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"image_processor_type": "ViTImageProcessor"}"#;
        fs::write(dir.path().join("preprocessor_config.json"), config).unwrap();
        Processor::open(dir.path()).unwrap()
    }

    const CATS: &str = r#"{"id2label": {"0": "cat", "1": "dog", "2": "ship"}}"#;

    fn open(files: &[&str], limit: Option<usize>, seed: Option<u64>) -> Result<Vec<(String, usize)>, String> {
        let (dir, labels) = (folder(files), labels(CATS).unwrap());
        let set = ImageFolder::open(dir.path(), &labels, processor(), Selection { limit, seed });
        let set = set.map_err(|e| e.to_string())?;
        let name =
            |i: usize| set.files[i].0.strip_prefix(dir.path()).unwrap().to_string_lossy().replace('\\', "/");
        Ok((0..set.len()).map(|i| (name(i), set.files[i].1.unwrap())).collect())
    }

    fn pairs(all: &[(&str, usize)]) -> Vec<(String, usize)> {
        all.iter().map(|(name, class)| (name.to_string(), *class)).collect()
    }

    #[test]
    fn folders_are_classes_by_name_or_by_number() {
        let found = open(&["Dog/b.JPG", "Dog/a.jpeg", "cat/c.png", "README.md", "cat/.hidden"], None, None);
        assert_eq!(found.unwrap(), pairs(&[("Dog/a.jpeg", 1), ("Dog/b.JPG", 1), ("cat/c.png", 0)]));
        assert_eq!(
            open(&["0/a.png", "2/a.png"], None, None).unwrap(),
            pairs(&[("0/a.png", 0), ("2/a.png", 2)])
        );
    }

    #[test]
    fn a_limit_takes_of_every_class_and_a_seed_draws() {
        let files = ["cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png", "ship/1.png", "ship/2.png"];
        let found = open(&files, Some(4), None).unwrap();
        assert_eq!(found, pairs(&[("cat/1.png", 0), ("cat/2.png", 0), ("dog/1.png", 1), ("ship/1.png", 2)]));
        assert_eq!(open(&files, Some(99), None).unwrap().len(), 6);
        let drawn = |seed| open(&files, Some(3), Some(seed)).unwrap();
        assert_eq!(drawn(1), drawn(1));
        assert!((2..9).any(|seed| drawn(seed) != drawn(1)));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for (files, needle) in [
            (&["cat/a.png", "horse/a.png"][..], "\"horse\" is none of the model's classes (cat, dog, ship"),
            (&["cat/a.png", "1/a.png"], "numbers of classes"),
            (&["3/a.png"], "none of the model's classes"),
            (&["cat/a.png", "Cat/a.png"], "same class"),
            (&["cat/a.webp"], "a.webp: neither a JPEG nor a PNG"),
            (&["cat/more/a.png"], "more: neither"),
            (&["a.png", "cat/a.png"], "a.png: a file that lies in no class folder"),
            (&["cat/.hidden"], "no images"),
            (&[], "no class folders"),
        ] {
            let error = open(files, None, None).unwrap_err();
            assert!(error.contains(needle), "{files:?}: {error}");
        }
    }

    #[test]
    fn images_to_calibrate_on_need_no_classes() {
        let dir = folder(&["a.png", "x/b.jpg", "x/notes.txt", "cat/c.png"]);
        let set = ImageFolder::unlabelled(dir.path(), processor(), Selection::default()).unwrap();
        assert_eq!((set.len(), set.gold(0)), (3, None));
        let empty = folder(&["x/notes.txt"]);
        assert!(ImageFolder::unlabelled(empty.path(), processor(), Selection::default()).is_err());
    }
}
