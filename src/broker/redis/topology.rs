//! Which master of a Redis Cluster serves which hash slots, as one of its nodes reports it. This
//! module does no I/O. See the Redis documentation, "Redis cluster specification" and `CLUSTER
//! SLOTS`.

use std::sync::LazyLock;

use redis::Value;

/// The number of hash slots of every Cluster.
pub(super) const SLOTS: usize = 16384;

/// The hash slot of a channel, which is also that of its keys and companions. Channel names contain
/// no braces, so the whole name is hashed.
pub(super) fn slot_of(channel: &str) -> usize {
    usize::from(crc16::State::<crc16::XMODEM>::calculate(channel.as_bytes())) % SLOTS
}

/// For each slot, a number whose decimal digits, as a hash tag, are in it.
static TAGS: LazyLock<Box<[u32]>> = LazyLock::new(|| {
    let mut tags: Vec<Option<u32>> = vec![None; SLOTS];
    let mut missing = SLOTS;
    // The hash is uniform, so this ends after about ten numbers for each slot.
    for number in 0.. {
        let tag = &mut tags[slot_of(itoa::Buffer::new().format(number))];
        if tag.is_none() {
            *tag = Some(number);
            missing -= 1;
        }
        if missing == 0 {
            break;
        }
    }
    tags.into_iter().flatten().collect()
});

/// The hash tag of a slot.
pub(super) fn tag_of(slot: usize) -> u32 {
    TAGS[slot]
}

/// The address of a node.
pub(super) type Place = (String, u16);

/// The slots and their masters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topology {
    /// The masters that serve slots.
    pub(super) masters: Vec<Place>,
    /// The master of each slot, by index.
    owners: Vec<Option<u16>>,
    /// All nodes, with the replicas.
    pub(super) nodes: Vec<Place>,
}

impl Topology {
    /// A topology without nodes.
    pub(super) fn empty() -> Self {
        Self { masters: Vec::new(), owners: vec![None; SLOTS], nodes: Vec::new() }
    }

    /// Parses the reply to `CLUSTER SLOTS`. `asked` replaces the host of nodes that do not know
    /// their own address. Returns `None` if the reply has another shape.
    pub(super) fn parse(reply: Value, asked: &str) -> Option<Self> {
        let ranges: Vec<Vec<Value>> = redis::from_redis_value(reply).ok()?;
        let mut topology = Self::empty();
        for range in ranges {
            let mut parts = range.into_iter();
            let mut number = || {
                let slot = redis::from_redis_value::<i64>(parts.next()?).ok()?;
                usize::try_from(slot).ok().filter(|slot| *slot < SLOTS)
            };
            let (first, last) = (number()?, number()?);
            let nodes = parts.map(|node| place(node, asked)).collect::<Option<Vec<_>>>()?;
            let Some(master) = nodes.first()?.clone() else { continue };
            topology.nodes.extend(nodes.into_iter().flatten());
            let index = topology.masters.iter().position(|known| *known == master).unwrap_or_else(|| {
                topology.masters.push(master);
                topology.masters.len() - 1
            });
            let index = u16::try_from(index).ok()?;
            topology.owners.get_mut(first..=last)?.fill(Some(index));
        }
        topology.nodes.sort();
        topology.nodes.dedup();
        Some(topology)
    }

    /// The index of the master that serves a slot.
    pub(super) fn owner(&self, slot: usize) -> Option<usize> {
        self.owners[slot].map(usize::from)
    }

    /// How many slots have a master.
    pub(super) fn served(&self) -> usize {
        self.owners.iter().flatten().count()
    }

    /// A name with a prefix, in the first slot of a master. The prefix must not contain braces.
    pub(super) fn name_in(&self, master: usize, prefix: &str) -> Option<String> {
        let slot = (0..SLOTS).find(|&slot| self.owner(slot) == Some(master))?;
        Some(format!("{prefix}{{{}}}", tag_of(slot)))
    }
}

/// The address of a node; `Some(None)` if the asked node does not know it.
fn place(node: Value, asked: &str) -> Option<Option<Place>> {
    let mut fields = redis::from_redis_value::<Vec<Value>>(node).ok()?.into_iter();
    let host: Option<String> = redis::from_redis_value(fields.next()?).ok()?;
    // The conversion to a smaller type would wrap around.
    let port = u16::try_from(redis::from_redis_value::<i64>(fields.next()?).ok()?).ok()?;
    Some(match host.as_deref() {
        Some("?") => None,
        None | Some("") => Some((asked.to_owned(), port)),
        Some(host) => Some((host.to_owned(), port)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(Vec::new())])
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!([slot_of("123456789"), slot_of("foo"), slot_of("")], [0x31C3, 12182, 0]);
    }

    #[test]
    fn every_slot_has_a_tag() {
        assert!((0..SLOTS).all(|slot| slot_of(&tag_of(slot).to_string()) == slot));
    }

    #[test]
    fn each_slot_has_its_master_and_an_unknown_host_is_the_asked_one() {
        let reply = Value::Array(vec![
            range(0, 5, vec![node(text("a"), 1), node(text("b"), 2)]),
            range(6, 6, vec![node(Value::Nil, 3)]),
            range(8, 16383, vec![node(text("a"), 1)]),
        ]);
        let topology = Topology::parse(reply, "asked").expect("valid");
        assert_eq!(topology.masters, [("a".into(), 1), ("asked".into(), 3)]);
        assert_eq!(topology.nodes, [("a".into(), 1), ("asked".into(), 3), ("b".into(), 2)]);
        assert_eq!(
            [0, 5, 6, 7, 8, 16383].map(|slot| topology.owner(slot)),
            [Some(0), Some(0), Some(1), None, Some(0), Some(0)]
        );
        assert_eq!(topology.served(), SLOTS - 1);
        let name = topology.name_in(1, "canary:").expect("it has a slot");
        assert_eq!(name, format!("canary:{{{}}}", tag_of(6)));
    }

    #[test]
    fn a_reply_of_another_shape_is_no_topology() {
        let replies = [
            Value::Okay,
            Value::Array(vec![range(0, 16384, vec![node(text("a"), 1)])]),
            Value::Array(vec![range(7, 3, vec![node(text("a"), 1)])]),
            Value::Array(vec![range(0, 1, vec![])]),
            Value::Array(vec![range(0, 1, vec![node(text("a"), 70_000)])]),
        ];
        assert!(replies.into_iter().all(|reply| Topology::parse(reply, "asked").is_none()));
    }
}
