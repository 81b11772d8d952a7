//! What every program here reports: one JSON object a line, for matrix/member.py.

use serde_json::{Value, json};

/// The address to connect to.
pub fn url() -> String {
    std::env::args().nth(1).expect("a URL")
}

/// Prints an event. Long messages are cut: their beginning and their length tell them apart.
pub fn report(event: &str, mut fields: Value) {
    fields["event"] = json!(event);
    if let Some(data) = fields["data"].as_str() {
        let length = data.chars().count();
        if length > 400 {
            fields["data"] = json!(format!("{}… {length}", data.chars().take(400).collect::<String>()));
        }
    }
    println!("{fields}");
}
