//! Random programs for a broker.

use proptest::prelude::*;
use proptest::sample::Index;

/// Which rule applies to the program's channel, by the beginning of its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// What applies without a rule.
    Plain,
    /// Five messages.
    Few,
    /// Messages age after a second.
    Brief,
    /// Five messages, three keys, 1,024 bytes of keys and values.
    Keyed,
    /// Keyed, with bounds that no program reaches.
    Sheet,
    /// No history.
    None,
}

pub(super) const RULES: &str = "
[[channel]]
match = 'few:*'
history = { messages = 5, age = '5m' }
[[channel]]
match = 'brief:*'
history = { messages = 100, age = '1s' }
[[channel]]
match = 'keyed:*'
history = { messages = 5, age = '5m' }
keyed = { keys = 3, bytes = 1024 }
[[channel]]
match = 'sheet:*'
history = { messages = 3000, age = '5m' }
keyed = true
[[channel]]
match = 'none:*'
history = false
";

impl Kind {
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Few => "few",
            Self::Brief => "brief",
            Self::Keyed => "keyed",
            Self::Sheet => "sheet",
            Self::None => "none",
        }
    }

    /// How many messages are kept, at most.
    pub(super) fn messages(self) -> u64 {
        match self {
            Self::Plain | Self::Brief => 100,
            Self::Few | Self::Keyed => 5,
            Self::Sheet => 3000,
            Self::None => 0,
        }
    }
}

/// A step of a program.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Publishes messages with one call.
    Publish(Vec<Sent>),
    /// Sets and removes so many keys, with one call.
    Churn(usize),
    Read(Asked, usize),
    /// Waits until what was published has aged, or, longer, until Redis has dropped it altogether.
    Age {
        long: bool,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Sent {
    pub(super) key: Option<&'static str>,
    pub(super) remove: bool,
    pub(super) id: Option<&'static str>,
    pub(super) number: u8,
    pub(super) size: usize,
}

/// From where to read.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Tail,
    Oldest,
    Last(usize),
    Keys,
    After(At),
    AfterIfKept(At),
    AfterDelivered(At),
}

/// A position, made from one of those that were answered before.
#[derive(Clone, Debug)]
pub(super) enum At {
    Seen(Index),
    /// So many before it.
    Before(Index, u64),
    /// Before the first message of its epoch.
    Zero(Index),
    /// So many after it: the future, perhaps.
    Ahead(Index, u64),
    /// Of an epoch long ago.
    Past(u64),
    /// Of an epoch to come.
    Later(u64),
}

fn sent() -> impl Strategy<Value = Sent> {
    let key = prop_oneof![
        2 => Just(None),
        3 => prop::sample::select(vec!["a", "B 4", "ключ", "d", "e"]).prop_map(Some),
    ];
    let id = prop_oneof![
        3 => Just(None),
        1 => prop::sample::select(vec!["one", "two 2", "три"]).prop_map(Some),
    ];
    // Of the largest, two fit into a page and three do not; four of the second largest do exactly.
    let size = prop_oneof![
        30 => 0_usize..20,
        5 => Just(400_usize),
        1 => Just(1 << 20),
        1 => Just(3 << 19),
    ];
    (key, any::<bool>(), id, 0_u8..3, size).prop_map(|(key, remove, id, number, size)| {
        // To remove without a key is refused before it gets to a broker.
        Sent { key, remove: remove && key.is_some(), id, number, size }
    })
}

fn at() -> impl Strategy<Value = At> {
    prop_oneof![
        4 => any::<Index>().prop_map(At::Seen),
        2 => (any::<Index>(), 1_u64..4).prop_map(|(seen, by)| At::Before(seen, by)),
        2 => any::<Index>().prop_map(At::Zero),
        1 => (any::<Index>(), 1_u64..4).prop_map(|(seen, by)| At::Ahead(seen, by)),
        1 => (0_u64..3).prop_map(At::Past),
        1 => (0_u64..3).prop_map(At::Later),
    ]
}

/// What an instance has delivered is never of the future: in Redis that would be a history that was set back, which
/// begins a new epoch. Nor is it of a foreign epoch: that would be one that was lost.
fn delivered() -> impl Strategy<Value = At> {
    prop_oneof![
        4 => any::<Index>().prop_map(At::Seen),
        2 => (any::<Index>(), 1_u64..4).prop_map(|(seen, by)| At::Before(seen, by)),
        2 => any::<Index>().prop_map(At::Zero),
        1 => Just(At::Past(0)),
    ]
}

fn read() -> impl Strategy<Value = Op> {
    let asked = prop_oneof![
        2 => Just(Asked::Tail),
        2 => Just(Asked::Oldest),
        2 => (0_usize..8).prop_map(Asked::Last),
        2 => Just(Asked::Keys),
        5 => at().prop_map(Asked::After),
        3 => at().prop_map(Asked::AfterIfKept),
        3 => delivered().prop_map(Asked::AfterDelivered),
    ];
    let limit = prop_oneof![2 => 1_usize..7, 3 => Just(1000_usize)];
    (asked, limit).prop_map(|(asked, limit)| Op::Read(asked, limit))
}

fn publish() -> impl Strategy<Value = Op> {
    let alone = sent().prop_map(|sent| vec![sent]);
    prop_oneof![alone, prop::collection::vec(sent(), 2..9)].prop_map(Op::Publish)
}

/// A program without the passing of time.
pub(super) fn program() -> impl Strategy<Value = (Kind, Vec<Op>)> {
    let kind = prop_oneof![
        1 => Just(Kind::Plain),
        3 => Just(Kind::Few),
        3 => Just(Kind::Keyed),
        2 => Just(Kind::Sheet),
        1 => Just(Kind::None),
    ];
    let op = prop_oneof![
        50 => publish(),
        50 => read(),
        1 => prop::sample::select(vec![3_usize, 400, 1050]).prop_map(Op::Churn),
    ];
    (kind, prop::collection::vec(op, 1..40))
}

/// A program in which messages age, a few times.
pub(super) fn brief_program() -> impl Strategy<Value = (Kind, Vec<Op>)> {
    let steps = || prop::collection::vec(prop_oneof![publish(), read()], 5..15);
    (steps(), any::<bool>(), steps(), any::<bool>(), steps()).prop_map(|(before, one, between, two, after)| {
        let ages = |long| std::iter::once(Op::Age { long });
        let ops = before.into_iter().chain(ages(one)).chain(between).chain(ages(two)).chain(after);
        (Kind::Brief, ops.collect())
    })
}
