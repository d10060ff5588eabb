//! A ticket as a QR code.

use qrcode::render::{svg, unicode};
use qrcode::{Color, EcLevel, QrCode};

/// Pixels of a module in a PNG.
const SCALE: usize = 8;
/// Light modules around a code (ISO/IEC 18004 wants four).
const QUIET: usize = 4;

/// The code of one ticket.
pub(super) struct QrPicture(QrCode);

impl QrPicture {
    /// Holds the ticket's symbols without blanks and line breaks, which the sender does not need. Errors: too long, in words.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let symbols: String = text.split_whitespace().collect();
        let levels = [EcLevel::M, EcLevel::L];
        let code = levels.iter().find_map(|&level| QrCode::with_error_correction_level(&symbols, level).ok());
        code.map(Self).ok_or_else(|| "the ticket is too long for a QR code; use `--max-lines 40`".to_owned())
    }

    /// For a terminal, light on dark.
    pub(super) fn terminal(&self) -> String {
        use unicode::Dense1x2::{Dark, Light};
        self.0.render::<unicode::Dense1x2>().dark_color(Light).light_color(Dark).quiet_zone(true).build()
    }

    pub(super) fn svg(&self) -> Vec<u8> {
        self.0.render::<svg::Color<'_>>().min_dimensions(400, 400).build().into_bytes()
    }

    pub(super) fn png(&self) -> Vec<u8> {
        let width = self.0.width();
        let colors = self.0.to_colors();
        let side = (width + 2 * QUIET) * SCALE;
        let module = |at: usize| (at / SCALE).checked_sub(QUIET).filter(|&at| at < width);
        let is_dark = |x: usize, y: usize| {
            let place = module(x).zip(module(y)).and_then(|(x, y)| colors.get(y * width + x));
            place == Some(&Color::Dark)
        };
        let pixels: Vec<u8> = (0..side * side).map(|at| if is_dark(at % side, at / side) { 0 } else { 255 }).collect();
        let mut bytes = Vec::new();
        let side = u32::try_from(side).unwrap_or(u32::MAX);
        let mut encoder = png::Encoder::new(&mut bytes, side, side);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::Eight);
        // Writing to memory does not fail.
        let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels));
        debug_assert!(written.is_ok(), "a square of bytes is a picture");
        bytes
    }
}
