//! From the bytes of a PNG or JPEG file to upright pixels of three colours, as `transformers.image_utils.load_image` gives
//! them: Pillow's `exif_transpose` and `convert("RGB")`.

use super::Rgb;
use super::orientation::{orientation, raw_profile};
use crate::DataError;
use crate::panics::without_panic;
use libjpeg_turbo_rs as jpeg;
use std::io::Cursor;
use std::path::Path;

/// Pixels beyond which Pillow takes an image for an attack: 2 (2^30 / 4 / 3).
pub(super) const MOST_PIXELS: u64 = 178_956_970;
/// Memory for the metadata and tables of a PNG.
const MOST_BYTES: usize = 256 << 20;

/// Decodes an image file, whatever its name says.
///
/// Greys become colours, palettes are looked up, transparency is dropped, CMYK is converted as Pillow does it, and of
/// 16 bits a colour the upper eight are used. Colour profiles and gamma are not applied.
///
/// # Errors
/// [`DataError::File`] for other formats, damaged files, and greys of 16 bits, which Pillow cuts off at 255.
pub fn decode(path: &Path) -> Result<Rgb, DataError> {
    let bytes = std::fs::read(path).map_err(|e| DataError::file(path, format!("cannot read it: {e}")))?;
    let read = without_panic(|| decode_bytes(&bytes));
    read.unwrap_or_else(|| Err("a damaged image".into())).map_err(|message| DataError::file(path, message))
}

fn decode_bytes(bytes: &[u8]) -> Result<Rgb, String> {
    match bytes {
        [0xff, 0xd8, ..] => from_jpeg(bytes),
        [0x89, b'P', b'N', b'G', ..] => from_png(bytes),
        _ => Err("not a JPEG or PNG image; convert it to one of them".into()),
    }
}

fn from_jpeg(bytes: &[u8]) -> Result<Rgb, String> {
    let fail = |e: jpeg::JpegError| format!("not a whole JPEG image: {e}");
    let limits = jpeg::DecodeLimits { max_pixels: MOST_PIXELS, ..jpeg::DecodeLimits::default() };
    let mut decoder = jpeg::Decoder::new_with_limits(bytes, limits).map_err(fail)?;
    decoder.set_output_format(jpeg::PixelFormat::Rgb);
    let image = decoder.decode_image().map_err(fail)?;
    if image.data.len() != 3 * image.width * image.height {
        return Err(format!("a JPEG image of {} bits a colour; save it with 8", image.precision));
    }
    let orientation = orientation(image.exif_data.as_deref(), image.xmp_data.as_deref());
    Ok(Rgb { width: image.width, height: image.height, data: image.data }.upright(orientation))
}

fn from_png(bytes: &[u8]) -> Result<Rgb, String> {
    let fail = |e: png::DecodingError| format!("not a whole PNG image: {e}");
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: MOST_BYTES });
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().map_err(fail)?;
    let info = reader.info();
    let (width, height) = (info.width as usize, info.height as usize);
    if u64::from(info.width) * u64::from(info.height) > MOST_PIXELS {
        return Err(format!("{width} times {height} pixels are more than the {MOST_PIXELS} that are read"));
    }
    if info.color_type == png::ColorType::Grayscale && info.bit_depth == png::BitDepth::Sixteen {
        return Err(
            "a grey image of 16 bits, whose range nothing tells; convert it to 8 bits as it is meant".into(),
        );
    }
    let mut samples = vec![0; reader.output_buffer_size().ok_or("an image that is too large")?];
    let frame = reader.next_frame(&mut samples).map_err(fail)?;
    // What comes after the pixels may say which way up they are.
    reader.finish().map_err(fail)?;
    let channels = frame.color_type.samples();
    samples.truncate(channels * width * height);
    let data = match channels {
        1 | 2 => samples.chunks_exact(channels).flat_map(|p| [p[0]; 3]).collect(),
        3 => samples,
        _ => samples.chunks_exact(channels).flat_map(|p| [p[0], p[1], p[2]]).collect(),
    };
    Ok(Rgb { width, height, data }.upright(png_orientation(reader.info())))
}

fn png_orientation(info: &png::Info) -> u32 {
    let is_profile = |keyword: &str| keyword == "Raw profile type exif";
    let plain = info.uncompressed_latin1_text.iter().find(|t| is_profile(&t.keyword)).map(|t| t.text.clone());
    let profile = plain.or_else(|| {
        let text = info.compressed_latin1_text.iter().find(|t| is_profile(&t.keyword));
        text.and_then(|t| t.get_text().ok())
    });
    let exif = match &info.exif_metadata {
        Some(data) => Some(data.to_vec()),
        None => profile.and_then(|text| raw_profile(&text)),
    };
    let xmp = info.utf8_text.iter().find(|t| t.keyword == "XML:com.adobe.xmp");
    let xmp = xmp.and_then(|t| t.get_text().ok());
    orientation(exif.as_deref(), xmp.as_ref().map(String::as_bytes))
}
