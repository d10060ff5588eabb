//! libFuzzer on one of the readers in `checkvalve_tests::fuzz`: the one that `CHECKVALVE_FUZZ_TARGET` names.
//!
//! With `CHECKVALVE_FUZZ_SEEDS=DIRECTORY` it writes there what to begin with instead.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use checkvalve_tests::fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("CHECKVALVE_FUZZ_TARGET").expect("CHECKVALVE_FUZZ_TARGET names a target");
    let target = Target::named(&name).expect("there is such a target");
    if let Some(folder) = std::env::var_os("CHECKVALVE_FUZZ_SEEDS") {
        for (number, seed) in target.seeds().iter().enumerate() {
            std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed).expect("the folder can be written");
        }
        std::process::exit(0);
    }
    target
});

fuzz_target!(init: { LazyLock::force(&TARGET); }, |bytes: &[u8]| (TARGET.read)(bytes));
