//! A page of history on its way to clients. It counts against the bound on outgoing bytes until the
//! last client that reads it has received it, once however many read it.

use std::ops::Deref;
use std::sync::Arc;

use crate::broker::{BrokerError, Page};
use crate::message::Entry;
use crate::transport::byte_budget::{Budget, Reservation};

/// A page of history, counted against a [`Budget`].
#[derive(Debug)]
pub struct HeldPage {
    page: Page,
    held: Arc<Reservation>,
}

/// Why there is no page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The broker did not answer.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The budget for outgoing bytes is used up.
    #[error("too much data waits for clients that do not read it; try again in a moment")]
    OutgoingFull,
}

impl HeldPage {
    /// Counts a page.
    ///
    /// # Errors
    /// [`PageError::OutgoingFull`] if the budget lacks room for it.
    pub fn new(page: Page, budget: &Arc<Budget>) -> Result<Self, PageError> {
        let bytes = page.messages.iter().map(|message| Entry::Message(message.clone()).weight()).sum();
        let mut held = Reservation::new(budget.clone());
        if held.set(bytes) { Ok(Self { page, held: Arc::new(held) }) } else { Err(PageError::OutgoingFull) }
    }

    /// Some of its messages, as a page that is not counted again.
    pub fn part(&self, page: Page) -> Self {
        Self { page, held: self.held.clone() }
    }
}

impl Deref for HeldPage {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.page
    }
}

impl PartialEq for HeldPage {
    fn eq(&self, other: &Self) -> bool {
        self.page == other.page
    }
}
