//! All entries of a directory, page after page.

use std::collections::VecDeque;

use super::Client;
use crate::failure::Failure;
use crate::proto::v1;

/// The entries of a directory, asked for page by page; made by [`Client::entries`].
#[derive(Debug)]
pub struct Listing {
    client: Client,
    request: v1::ListRequest,
    page: VecDeque<v1::Entry>,
    errors: Vec<v1::PathError>,
    ended: bool,
}

impl Client {
    /// Goes through all that [`Client::list`] answers to this request, from its cursor on.
    #[must_use]
    pub fn entries(&self, request: v1::ListRequest) -> Listing {
        Listing {
            client: self.clone(),
            request,
            page: VecDeque::new(),
            errors: Vec::new(),
            ended: false,
        }
    }
}

impl Listing {
    /// The directories that could not be read so far, in a recursive listing.
    #[must_use]
    pub fn errors(&self) -> &[v1::PathError] {
        &self.errors
    }
}

impl Iterator for Listing {
    type Item = Result<v1::Entry, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.page.pop_front() {
                return Some(Ok(entry));
            }
            if self.ended {
                return None;
            }
            match self.client.list(&self.request) {
                Ok(response) => {
                    // A cursor that stays would have us ask for ever.
                    self.ended =
                        response.cursor.is_empty() || response.cursor == self.request.cursor;
                    self.request.cursor = response.cursor;
                    self.page = response.entries.into();
                    self.errors.extend(response.errors);
                }
                Err(failure) => {
                    self.ended = true;
                    return Some(Err(failure));
                }
            }
        }
    }
}
