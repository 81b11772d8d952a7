//! The rules file: any text is read or refused with a sentence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use livebridge::rules::Rules;

fuzz_target!(|text: &str| {
    if let Err(error) = Rules::parse(text) {
        assert!(!error.is_empty());
    }
});
