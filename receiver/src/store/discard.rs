//! Content that is not what was signed: thrown away, so that it comes again.

use std::ops::Range;
use std::sync::PoisonError;

use checkvalve_protocol::wire::ObjectKind;

use super::staged::Place;
use super::{Staged, Store, journal_error};
use crate::ranges::Ranges;
use crate::sink::StoreError;

impl Store {
    /// Bytes of whole files, as ranges of the data object, are wrong: they are not stored any more, and what is kept of
    /// unfinished blocks that touch them goes too. Durable when this returns; after a crash before that, each range is stored
    /// as before or not at all. Errors: some of it may be stored still; this may be called again.
    pub fn discard_ranges(&self, staged: &Staged, ranges: &[Range<u64>]) -> Result<(), StoreError> {
        drop(staged.wake(&self.disk)?);
        // Whoever writes holds the place until that is noted.
        let place = staged.place.write().unwrap_or_else(PoisonError::into_inner);
        let tree = match &*place {
            Place::Gone => return Err(StoreError::Unwanted),
            Place::Tree(tree) => Some(tree),
            Place::New | Place::Flat | Place::Asleep(_) => None,
        };
        // Neighbours become one: files are many, blocks are not.
        let ranges: &[Range<u64>] = &ranges.iter().cloned().collect::<Ranges>().iter().collect::<Vec<_>>();
        {
            let mut log = self.log();
            log.lost(staged.id, ranges).map_err(journal_error)?;
            let mut blocks = staged.blocks();
            for range in ranges {
                // The flat file has these bytes until it is cut.
                for part in blocks.stored.flat.within(range.clone()) {
                    blocks.moved.insert(part);
                }
                blocks.stored.remove(range);
                blocks.unseen.remove(range.clone());
            }
            blocks.losses += 1;
            staged.recount(&blocks);
        }
        for (oti, sbn) in ranges.iter().flat_map(|range| staged.parked.in_range(range)) {
            self.drop_parked(staged, ObjectKind::Data, &oti, sbn);
        }
        let Some(tree) = tree else { return Ok(()) };
        if let Some(first) = ranges.iter().filter(|range| !range.is_empty()).map(|range| range.start).min() {
            staged.hashing().rewind(tree.files(), first);
        }
        for range in ranges {
            tree.files_within(range).into_iter().try_for_each(|index| tree.discard(index))?;
        }
        Ok(())
    }
}
