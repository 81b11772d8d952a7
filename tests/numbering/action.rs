//! What can happen to the instances and to Redis, and how often.

/// What can happen. Numbers are indexes of instances or of requests on their way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// A client sends `PUBLISH`.
    Publish,
    /// A client calls `livebridge_publish`.
    PublishStored,
    /// An instance subscribes on a new connection.
    Connect(usize),
    /// An instance processes what it has received next.
    Receive(usize),
    /// Redis executes a request, whichever was sent first, and its answer arrives.
    Execute(usize),
    /// Redis executes a request, and its answer is lost.
    ExecuteUnanswered(usize),
    /// An instance gives a request up; Redis may execute it at any later time.
    GiveUp(usize),
    /// The subscription of an instance is cut, with all that it has not processed.
    Cut(usize),
    /// An instance is killed, and another one starts in its place.
    Kill(usize),
    /// A member was not renewed in time, though it may be alive: it stood still.
    Expire(u64),
    /// An instance renews its members.
    Renew(usize),
    /// An instance is about to stop.
    Leave(usize),
    /// An instance sends again what had no success.
    Retry(usize),
    /// Redis restarts with its data: all connections end.
    Restart,
    /// Redis restarts without data.
    RestartEmpty,
}

impl Action {
    /// How many kinds of faults there are.
    pub(crate) const FAULTS: u8 = 6;

    /// Which kind of fault it is.
    pub(crate) fn fault(self) -> Option<u8> {
        match self {
            Self::Cut(_) => Some(0),
            Self::ExecuteUnanswered(_) => Some(1),
            Self::Expire(_) => Some(2),
            Self::GiveUp(_) => Some(3),
            Self::Kill(_) => Some(4),
            Self::Leave(_) => Some(5),
            _ => None,
        }
    }
}

/// How often the rarer things may happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Budget {
    pub(crate) plain: u8,
    pub(crate) stored: u8,
    /// Lost connections, lost requests and answers, kills, expiries, and instances that leave.
    pub(crate) faults: u8,
    pub(crate) restarts: u8,
    pub(crate) empty_restarts: u8,
}
