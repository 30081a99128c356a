//! Pixels, and turning them upright.

/// An image of eight bits a colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`.
    pub data: Vec<u8>,
}

impl Rgb {
    /// The pixel at column `x` of row `y`.
    pub(super) fn pixel(&self, x: usize, y: usize) -> &[u8] {
        let at = 3 * (y * self.width + x);
        &self.data[at..at + 3]
    }

    /// The image of `width` times `height` pixels whose pixel (x, y) is the one at `from(x, y)` of this one.
    fn gather(&self, width: usize, height: usize, from: impl Fn(usize, usize) -> (usize, usize)) -> Self {
        let mut data = Vec::with_capacity(3 * width * height);
        for y in 0..height {
            for x in 0..width {
                let (x, y) = from(x, y);
                data.extend_from_slice(self.pixel(x, y));
            }
        }
        Self { width, height, data }
    }

    /// The image as it is to be looked at, by EXIF's orientation: 1 is as it stands, 2 to 8 are its mirrors and turns
    /// (Exif 2.32, 4.6.4, tag 0x0112). Other numbers mean nothing.
    pub(super) fn upright(self, orientation: u32) -> Self {
        let (w, h) = (self.width, self.height);
        match orientation {
            2 => self.gather(w, h, |x, y| (w - 1 - x, y)),
            3 => self.gather(w, h, |x, y| (w - 1 - x, h - 1 - y)),
            4 => self.gather(w, h, |x, y| (x, h - 1 - y)),
            5 => self.gather(h, w, |x, y| (y, x)),
            6 => self.gather(h, w, |x, y| (y, h - 1 - x)),
            7 => self.gather(h, w, |x, y| (w - 1 - y, h - 1 - x)),
            8 => self.gather(h, w, |x, y| (w - 1 - y, x)),
            _ => self,
        }
    }

    /// The middle `width` times `height` pixels; black where there are none.
    pub(super) fn center_crop(&self, width: usize, height: usize) -> Self {
        // How many of the output's pixels lie before the image, or of the image's before the output. transformers puts
        // the odd pixel before a small image and after the cut of a large one.
        let place = |own: usize, wanted: usize| {
            ((wanted.saturating_sub(own)).div_ceil(2), own.saturating_sub(wanted) / 2)
        };
        let ((pad_x, skip_x), (pad_y, skip_y)) = (place(self.width, width), place(self.height, height));
        let mut data = vec![0; 3 * width * height];
        let columns = width.min(self.width);
        for y in 0..height.min(self.height) {
            let from = 3 * ((y + skip_y) * self.width + skip_x);
            let to = 3 * ((y + pad_y) * width + pad_x);
            data[to..to + 3 * columns].copy_from_slice(&self.data[from..from + 3 * columns]);
        }
        Self { width, height, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Greys, row by row.
    fn image(width: usize, rows: &[u8]) -> Rgb {
        let data = rows.iter().flat_map(|&v| [v; 3]).collect();
        Rgb { width, height: rows.len() / width, data }
    }

    #[test]
    fn every_orientation_ends_upright() {
        // 1 2
        // 3 4
        // 5 6
        let upright = |orientation| {
            let image = image(2, &[1, 2, 3, 4, 5, 6]).upright(orientation);
            (image.width, image.data.chunks(3).map(|p| p[0]).collect::<Vec<_>>())
        };
        assert_eq!(upright(0), upright(1));
        assert_eq!(upright(1), (2, vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(upright(2), (2, vec![2, 1, 4, 3, 6, 5]));
        assert_eq!(upright(3), (2, vec![6, 5, 4, 3, 2, 1]));
        assert_eq!(upright(4), (2, vec![5, 6, 3, 4, 1, 2]));
        assert_eq!(upright(5), (3, vec![1, 3, 5, 2, 4, 6]));
        assert_eq!(upright(6), (3, vec![5, 3, 1, 6, 4, 2]));
        assert_eq!(upright(7), (3, vec![6, 4, 2, 5, 3, 1]));
        assert_eq!(upright(8), (3, vec![2, 4, 6, 1, 3, 5]));
    }

    #[test]
    fn a_crop_takes_the_middle_and_pads_with_black() {
        let crop = |w, h| {
            let image = image(3, &[1, 2, 3, 4, 5, 6]).center_crop(w, h);
            image.data.chunks(3).map(|p| p[0]).collect::<Vec<_>>()
        };
        assert_eq!(crop(1, 1), [2]);
        assert_eq!(crop(2, 2), [1, 2, 4, 5]);
        assert_eq!(crop(4, 1), [0, 1, 2, 3]);
        assert_eq!(crop(1, 5), [0, 0, 2, 5, 0]);
    }
}
