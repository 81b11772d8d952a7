#!/usr/bin/env bash
# crates.io redis 1.8.1: an integer reply that is too large for the type asked for
#
# Guess:  an error, as for a text that is no number, and as for the same number sent as a text.
# Seen:   the integer wraps around in silence: 70000 as a u16 is 4464, -1 as a u64 is
#         18446744073709551615. The same digits as a text are refused. So whether a program notices
#         depends on whether the server answers with an integer or with a text.
source "$(dirname "$0")/common.bash"
command -v cargo >/dev/null || { echo "needs cargo"; exit 77; }

mkdir -p "$folder/wrap/src"
cat >"$folder/wrap/Cargo.toml" <<'TOML'
[package]
name = "wrap"
version = "0.1.0"
edition = "2021"
[dependencies]
redis = { version = "=1.8.1", default-features = false }
TOML
cat >"$folder/wrap/src/main.rs" <<'RUST'
use redis::{from_redis_value, Value};

fn main() {
    let text = |text: &str| Value::BulkString(text.into());
    let said = |is_error: bool| if is_error { "refused" } else { "taken" };
    println!(
        "70000 as u16: {:?}, as a text {}; -1 as u64: {:?}, as a text {}",
        from_redis_value::<u16>(Value::Int(70000)).ok(),
        said(from_redis_value::<u16>(text("70000")).is_err()),
        from_redis_value::<u64>(Value::Int(-1)).ok(),
        said(from_redis_value::<u64>(text("-1")).is_err()),
    );
}
RUST
seen=$(cd "$folder/wrap" && CARGO_TARGET_DIR="$folder/target" cargo run --quiet)
expect "redis 1.8.1" "$seen" \
    "70000 as u16: Some(4464), as a text refused; -1 as u64: Some(18446744073709551615), as a text refused"
