//! `vectors/symbols.toml` and `vectors/partition.toml`: source blocks and repair symbols, against this crate.
//!
//! `CHECKVALVE_WRITE_VECTORS=1 cargo test -p checkvalve-protocol --test symbols` writes them anew.

use std::path::Path;

use checkvalve_protocol::fec::{self, Plans};
use checkvalve_protocol::partition::Oti;
use toml::{Table, Value};

fn check(name: &str, head: &str, made: &Table) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name);
    if std::env::var_os("CHECKVALVE_WRITE_VECTORS").is_some() {
        std::fs::write(&path, format!("{head}\n{}", toml::to_string(made).unwrap())).unwrap();
    }
    let file: Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    assert_eq!(&file, made, "{name}");
}

#[test]
fn repair_symbols() {
    let plans = Plans::new();
    let mut list = Vec::new();
    for (symbols, first) in
        [(1_u16, 1_u32), (2, 2), (3, 3), (10, 10), (11, 5_000), (128, 128), (256, 0xff_fff0), (1_024, 2_000)]
    {
        let source: Vec<u8> = (0..usize::from(symbols) * 64).map(|i| (i * 7 + 3 + i / 64) as u8).collect();
        let mut repair = Vec::new();
        fec::encode(&plans, &source, 64, first, 2, &mut repair).unwrap();
        for (esi, bytes) in (first..).zip(repair.chunks(64)) {
            let mut row = Table::new();
            row.insert("symbols".into(), i64::from(symbols).into());
            row.insert("esi".into(), i64::from(esi).into());
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            row.insert("symbol".into(), hex.into());
            list.push(Value::Table(row));
        }
    }
    let made = Table::from_iter([("repair".to_owned(), Value::Array(list))]);
    let head = "# Repair symbols of 64 bytes of blocks of K = `symbols`; byte i of the block is (7 i + 3 + floor(i / 64)) mod 256.\n\
                # SPEC.md section \"Source blocks and symbols\".\n";
    check("symbols.toml", head, &made);
}

#[test]
fn partition() {
    let mut list = Vec::new();
    for (length, size, block) in [
        (1_u64, 64_u16, 256_u16),
        (64, 64, 1),
        (65, 64, 1),
        (4_096, 1_408, 256),
        (256 * 1_408, 1_408, 256),
        (256 * 1_408 + 1, 1_408, 256),
        (1 << 30, 1_408, 256),
        (20_000_000_000, 8_896, 128),
        (1 << 44, 1_408, 256),
    ] {
        let oti = Oti::new(length, size, block).unwrap();
        let last = oti.blocks() - 1;
        let row = [
            ("transfer_length", i64::try_from(length).unwrap()),
            ("symbol_size", size.into()),
            ("max_block_symbols", block.into()),
            ("blocks", oti.blocks().into()),
            ("first_block_symbols", oti.block_symbols(0).unwrap().into()),
            ("last_block_symbols", oti.block_symbols(last).unwrap().into()),
            ("last_block_offset", i64::try_from(oti.block_offset(last).unwrap()).unwrap()),
            ("last_block_bytes", i64::try_from(oti.block_len(last).unwrap()).unwrap()),
        ];
        list.push(Value::Table(row.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect()));
    }
    let made = Table::from_iter([("object".to_owned(), Value::Array(list))]);
    check(
        "partition.toml",
        "# Objects and their source blocks. SPEC.md section \"Source blocks and symbols\".\n",
        &made,
    );
}
