//! QR codes in a picture: a screenshot or a photograph of the other side's screen.

use std::io::Cursor;

use image::{DynamicImage, GrayImage, ImageReader, Limits};

/// Most pixels in a row or column. Cameras have fewer.
const MOST_PIXELS: u32 = 16_384;
/// Most bytes that a picture may take once it is unpacked.
const MOST_BYTES: u64 = 512 << 20;
/// Photographs are made smaller than this; codes are found better in them then, and sooner.
const ENOUGH_PIXELS: u32 = 2_000;

/// Whether it begins as PNG or JPEG files do.
pub(super) fn is_picture(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x89PNG\r\n\x1a\n") || bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// The text of each QR code in the picture, at least one. Errors: what is wrong, for people.
pub(super) fn texts(bytes: &[u8]) -> Result<Vec<String>, String> {
    let gray = decode(bytes)?.into_luma8();
    let mut problem = "there is no QR code in the picture; take it again, straight from the front".to_owned();
    for gray in attempts(gray) {
        let (width, height) = (gray.width() as usize, gray.height() as usize);
        let mut prepared = rqrr::PreparedImage::prepare_from_greyscale(width, height, |x, y| {
            u32::try_from(x).ok().zip(u32::try_from(y).ok()).map_or(255, |(x, y)| gray.get_pixel(x, y).0[0])
        });
        let grids = prepared.detect_grids();
        let read: Vec<_> = grids.iter().map(|grid| grid.decode().map(|(_, text)| text)).collect();
        if !read.is_empty() && read.iter().all(Result::is_ok) {
            return Ok(read.into_iter().flatten().collect());
        }
        if let Some(error) = read.into_iter().find_map(Result::err) {
            problem = format!("the QR code cannot be read ({error}); take a sharper picture, or type the ticket");
        }
    }
    Err(problem)
}

fn decode(bytes: &[u8]) -> Result<DynamicImage, String> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MOST_PIXELS);
    limits.max_image_height = Some(MOST_PIXELS);
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    reader.decode().map_err(|error| format!("the picture cannot be read: {error}"))
}

/// As it is, smaller, and larger with a white edge, as codes without one are not found.
fn attempts(gray: GrayImage) -> Vec<GrayImage> {
    let longest = gray.width().max(gray.height()).max(1);
    let mut all = Vec::new();
    if longest > ENOUGH_PIXELS {
        let small = |side: u32| {
            u32::try_from(u64::from(side) * u64::from(ENOUGH_PIXELS) / u64::from(longest)).unwrap_or(1).max(1)
        };
        let (width, height) = (small(gray.width()), small(gray.height()));
        all.push(image::imageops::resize(&gray, width, height, image::imageops::FilterType::Triangle));
    } else {
        let mut framed = GrayImage::from_pixel(gray.width() * 2 + 64, gray.height() * 2 + 64, image::Luma([255]));
        let double =
            image::imageops::resize(&gray, gray.width() * 2, gray.height() * 2, image::imageops::FilterType::Nearest);
        image::imageops::overlay(&mut framed, &double, 32, 32);
        all.push(framed);
    }
    all.insert(0, gray);
    all
}
