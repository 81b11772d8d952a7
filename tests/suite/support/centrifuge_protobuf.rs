//! The Protobuf form of the Centrifuge protocol, from its definition: a message as a test writes it, in JSON, to bytes and
//! back. Stricter than an SDK: a field that is not in these tables, or is sent though it is zero, fails.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use Type::*;

/// The type of a field.
enum Type {
    Unsigned,
    Signed,
    Bool,
    Text,
    /// Bytes that are JSON.
    Json,
    /// The bytes of a message, absent if there are none. A test sees them as the JSON form has them.
    Payload,
    One(&'static [Field]),
    Many(&'static [Field]),
    /// By name.
    Named(&'static [Field]),
}

/// The number, the name and the type.
type Field = (u32, &'static str, Type);

static COMMAND: &[Field] = &[
    (1, "id", Unsigned),
    (4, "connect", One(&[(1, "token", Text), (3, "subs", Named(SUBSCRIBE)), (4, "name", Text)])),
    (5, "subscribe", One(SUBSCRIBE)),
    (6, "unsubscribe", One(CHANNEL)),
    (7, "publish", One(PUBLISH)),
    (8, "presence", One(CHANNEL)),
    (9, "presence_stats", One(CHANNEL)),
    (
        10,
        "history",
        One(&[(1, "channel", Text), (7, "limit", Signed), (8, "since", One(POSITION)), (9, "reverse", Bool)]),
    ),
    (11, "ping", One(&[])),
    (12, "send", One(&[(1, "data", Json)])),
    (13, "rpc", One(&[(1, "data", Json), (2, "method", Text)])),
    (14, "refresh", One(&[(1, "token", Text)])),
    (15, "sub_refresh", One(&[(1, "channel", Text), (2, "token", Text), (3, "type", Signed)])),
];
static CHANNEL: &[Field] = &[(1, "channel", Text)];
static PUBLISH: &[Field] =
    &[(1, "channel", Text), (2, "data", Json), (3, "type", Signed), (4, "key", Text), (5, "removed", Bool)];
static POSITION: &[Field] = &[(1, "offset", Unsigned), (2, "epoch", Text)];
static SUBSCRIBE: &[Field] = &[
    (1, "channel", Text),
    (2, "token", Text),
    (3, "recover", Bool),
    (6, "epoch", Text),
    (7, "offset", Unsigned),
    (8, "data", Json),
    (9, "positioned", Bool),
    (10, "recoverable", Bool),
    (11, "join_leave", Bool),
    (12, "delta", Text),
    (13, "tf", One(&[(2, "key", Text), (3, "cmp", Text), (4, "val", Text)])),
    (14, "flag", Unsigned),
    (15, "type", Signed),
    (16, "phase", Signed),
    (17, "cursor", Text),
    (18, "limit", Signed),
];

static REPLY: &[Field] = &[
    (1, "id", Unsigned),
    (2, "error", One(&[(1, "code", Unsigned), (2, "message", Text), (3, "temporary", Bool)])),
    (4, "push", One(PUSH)),
    (5, "connect", One(CONNECTED)),
    (6, "subscribe", One(SUBSCRIBED)),
    (7, "unsubscribe", One(&[])),
    (8, "publish", One(&[])),
    (9, "presence", One(&[(1, "presence", Named(CLIENT))])),
    (10, "presence_stats", One(&[(1, "num_clients", Unsigned), (2, "num_users", Unsigned)])),
    (11, "history", One(&[(1, "publications", Many(PUBLICATION)), (2, "epoch", Text), (3, "offset", Unsigned)])),
    (12, "ping", One(&[])),
    (14, "refresh", One(&[(2, "version", Text), (3, "expires", Bool), (4, "ttl", Unsigned)])),
    (15, "sub_refresh", One(&[(1, "expires", Bool), (2, "ttl", Unsigned)])),
];
static PUSH: &[Field] = &[
    (2, "channel", Text),
    (4, "pub", One(PUBLICATION)),
    (5, "join", One(&[(1, "info", One(CLIENT))])),
    (6, "leave", One(&[(1, "info", One(CLIENT))])),
    (7, "unsubscribe", One(&[(2, "code", Unsigned), (3, "reason", Text)])),
];
static PUBLICATION: &[Field] =
    &[(4, "data", Payload), (6, "offset", Unsigned), (11, "key", Text), (12, "removed", Bool), (14, "epoch", Text)];
static CLIENT: &[Field] = &[(1, "user", Text), (2, "client", Text), (3, "conn_info", Json)];
static CONNECTED: &[Field] = &[
    (1, "client", Text),
    (2, "version", Text),
    (3, "expires", Bool),
    (4, "ttl", Unsigned),
    (6, "subs", Named(SUBSCRIBED)),
    (7, "ping", Unsigned),
    (8, "pong", Bool),
    (10, "node", Text),
];
static SUBSCRIBED: &[Field] = &[
    (1, "expires", Bool),
    (2, "ttl", Unsigned),
    (3, "recoverable", Bool),
    (6, "epoch", Text),
    (7, "publications", Many(PUBLICATION)),
    (8, "recovered", Bool),
    (9, "offset", Unsigned),
    (10, "positioned", Bool),
    (11, "data", Json),
    (12, "was_recovering", Bool),
    (15, "type", Unsigned),
    (16, "phase", Unsigned),
    (17, "cursor", Text),
    (18, "state", Many(PUBLICATION)),
];

/// A command, with its length before it.
pub fn command(value: &Value) -> Vec<u8> {
    let mut message = Vec::new();
    write(COMMAND, value, &mut message);
    delimited(&message)
}

/// A command that publishes these bytes.
pub fn publish(id: u32, channel: &str, data: &[u8]) -> Vec<u8> {
    let mut request = Vec::new();
    field(1, channel.as_bytes(), &mut request);
    field(2, data, &mut request);
    let mut message = vec![1 << 3];
    varint(id.into(), &mut message);
    field(7, &request, &mut message);
    delimited(&message)
}

/// The one reply in a frame.
pub fn reply(frame: &[u8]) -> Value {
    let mut rest = frame;
    let length = usize::try_from(read_varint(&mut rest)).unwrap();
    assert_eq!(rest.len(), length, "one reply in a frame: {frame:02x?}");
    read(REPLY, rest)
}

/// A message with its length before it.
pub fn delimited(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(message.len() as u64, &mut out);
    out.extend_from_slice(message);
    out
}

fn write(fields: &[Field], value: &Value, out: &mut Vec<u8>) {
    for (name, value) in value.as_object().unwrap() {
        let found = fields.iter().find(|(_, field, _)| field == name);
        let (number, _, kind) = found.unwrap_or_else(|| panic!("there is no {name}"));
        let mut message = |fields, value| {
            let mut inner = Vec::new();
            write(fields, value, &mut inner);
            field(*number, &inner, out);
        };
        match kind {
            One(fields) => message(fields, value),
            Many(fields) => value.as_array().unwrap().iter().for_each(|value| message(fields, value)),
            Named(fields) => value.as_object().unwrap().iter().for_each(|(name, value)| {
                let (mut entry, mut inner) = (Vec::new(), Vec::new());
                write(fields, value, &mut inner);
                field(1, name.as_bytes(), &mut entry);
                field(2, &inner, &mut entry);
                field(*number, &entry, out);
            }),
            Text => field(*number, value.as_str().unwrap().as_bytes(), out),
            Json | Payload => field(*number, value.to_string().as_bytes(), out),
            Unsigned => number_field(*number, value.as_u64().unwrap(), out),
            Signed => number_field(*number, value.as_i64().unwrap().cast_unsigned(), out),
            Bool => number_field(*number, value.as_bool().unwrap().into(), out),
        }
    }
}

fn number_field(number: u32, value: u64, out: &mut Vec<u8>) {
    varint(u64::from(number) << 3, out);
    varint(value, out);
}

fn field(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first().expect("a whole number");
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a number of more than ten bytes");
}

fn read_bytes<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = usize::try_from(read_varint(bytes)).unwrap();
    bytes.split_off(..length).expect("a field within its message")
}

fn read(fields: &[Field], mut bytes: &[u8]) -> Value {
    let mut found = Map::new();
    while !bytes.is_empty() {
        let key = read_varint(&mut bytes);
        let (number, wire_type) = (key >> 3, key & 7);
        let (_, name, kind) = fields
            .iter()
            .find(|field| u64::from(field.0) == number)
            .unwrap_or_else(|| panic!("no field has the number {number}"));
        if let Many(fields) | Named(fields) = kind {
            assert_eq!(wire_type, 2, "{name}");
            let inner = read_bytes(&mut bytes);
            if matches!(kind, Many(_)) {
                let all = found.entry(*name).or_insert_with(|| json!([]));
                all.as_array_mut().unwrap().push(read(fields, inner));
            } else {
                let (key, value) = entry(fields, inner);
                found.entry(*name).or_insert_with(|| json!({}))[key] = value;
            }
            continue;
        }
        assert!(!found.contains_key(*name), "{name} twice");
        let value = match kind {
            Unsigned | Signed | Bool => {
                assert_eq!(wire_type, 0, "{name}");
                let value = read_varint(&mut bytes);
                assert!(value > 0, "{name} is zero");
                if matches!(kind, Bool) { json!(value == 1) } else { json!(value) }
            }
            kind => {
                assert_eq!(wire_type, 2, "{name}");
                let inner = read_bytes(&mut bytes);
                match kind {
                    One(fields) => read(fields, inner),
                    _ => {
                        assert!(!inner.is_empty(), "{name} is empty");
                        let is_text = std::str::from_utf8(inner).is_ok();
                        assert!(is_text || matches!(kind, Payload), "{name} is no text");
                        if !is_text {
                            found.insert("tags".to_owned(), json!({ "encoding": "base64" }));
                        }
                        if matches!(kind, Text) {
                            String::from_utf8(inner.to_vec()).unwrap().into()
                        } else {
                            data(inner)
                        }
                    }
                }
            }
        };
        found.insert((*name).to_owned(), value);
    }
    // What the JSON form has even if it is empty.
    for (_, name, kind) in fields {
        match kind {
            Payload => _ = found.entry(*name).or_insert_with(|| "".into()),
            Named(_) if *name == "presence" => _ = found.entry(*name).or_insert_with(|| json!({})),
            _ => {}
        }
    }
    Value::Object(found)
}

/// Bytes as the JSON form has them.
fn data(bytes: &[u8]) -> Value {
    let text = std::str::from_utf8(bytes).ok();
    serde_json::from_slice(bytes).unwrap_or_else(|_| text.map_or_else(|| STANDARD.encode(bytes), str::to_owned).into())
}

/// An entry of a map.
fn entry(fields: &[Field], mut bytes: &[u8]) -> (String, Value) {
    let (mut key, mut value) = (String::new(), read(fields, b""));
    while !bytes.is_empty() {
        match read_varint(&mut bytes) {
            10 => key = String::from_utf8(read_bytes(&mut bytes).to_vec()).unwrap(),
            18 => value = read(fields, read_bytes(&mut bytes)),
            other => panic!("{other} in an entry of a map"),
        }
    }
    (key, value)
}
