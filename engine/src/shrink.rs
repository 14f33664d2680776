//! The file shrinks by itself: when that is due, and how far it is.
//!
//! Allocation takes the lowest free place, and a checkpoint cuts the file behind the last page that anybody needs. So
//! all there is to do is to write anew what stands far behind, and to pack what has become sparse: a *pass* over the
//! trees. A pass is walks by a reader (`repack.rs`), each followed by small steps of the writer (`rearrange.rs`) and by
//! a checkpoint that writes what they took. What that gave up is free two checkpoints later; then the pass is over,
//! and the file is as much shorter as it could be. A pass that gained next to nothing is the last until
//! there is notably more to gain: a root that a reader holds, or a busy writer, may be what keeps the file long.
//!
//! Promises: no step is long, and no more is taken into memory than a fraction of what may be dirty, nor much
//! more than there is room for before the place where the file is to end. It knows no clock: the caller paces steps and checkpoints.

use std::collections::VecDeque;

use crate::page::{LEAF_CELL_HEAD, PAGE, SLOT_BYTES, Sums};
use crate::repack::{FULL, Position, ShrinkPlan, ShrinkScan, Work};
use crate::search::TreeRoot;
use crate::space::Room;
use crate::{Store, StoreError};

/// Pages that the file may be longer than needed whatever its length: 2 MiB.
const SLACK_PAGES: u64 = 512;
/// And one page in so many.
const SLACK_PART: u64 = 6;
/// Checkpoints until what a checkpoint gave up may be cut off: the next makes sure that it is not needed, and the one after
/// that may use it.
const SETTLE: u8 = 3;
/// Where there is no room before the place where the file is to end, a walk may make the file longer by so many pages,
/// and by one in so many: packing needs room before it gives some.
const GROW_PAGES: u64 = 16;
const GROW_PART: u64 = 64;
/// The part of the memory for dirty pages that a walk's work may fill, and the part above which it waits.
const DIRTY_PART: usize = 4;
const DIRTY_WAIT: usize = 2;
/// A pass must have made the file shorter, or emptier, by so many pages and by one in so many, for another to follow.
const GAIN_PAGES: u64 = 64;
const GAIN_PART: u64 = 32;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing to do.
    #[default]
    Rest,
    /// So many checkpoints, then we see.
    Settle(u8),
    /// A walk should begin.
    Ready,
    /// A walk is under way.
    Scanning,
    /// The writer has work.
    Working,
}

/// One round over all trees.
#[derive(Debug)]
struct Pass {
    /// Where the file is to end.
    cut: u64,
    /// As of when it began.
    room: Room,
    /// Where the next walk begins.
    from: Position,
    /// The second half: look into leaves.
    leaves: bool,
    /// Anything was found.
    found: bool,
    /// Nothing is left to be looked at.
    complete: bool,
}

/// What the store knows of its shrinking.
#[derive(Debug, Default)]
pub(crate) struct Shrink {
    phase: Phase,
    /// Somebody asked for it: the smallest gain counts.
    eager: bool,
    /// Somebody asked while a pass was under way, which may have passed by what it should look at: another follows.
    again: bool,
    pass: Option<Pass>,
    work: VecDeque<Work>,
    /// As of the newest checkpoint.
    room: Room,
    /// Pages that the content would need if all pages were well filled.
    ideal: u64,
    /// The excess when a pass found that it could not help.
    in_vain: Option<u64>,
}

/// Pages for the content of the trees that a checkpoint wrote, if they are well filled.
pub(crate) fn ideal_pages(trees: &[TreeRoot]) -> u64 {
    trees.iter().map(written_sums).fold(0, |pages, sums| {
        // What a damaged root says may be anything.
        let bytes =
            sums.bytes.saturating_add(sums.count.saturating_mul((SLOT_BYTES + LEAF_CELL_HEAD) as u64));
        let leaves = bytes.div_ceil(FULL as u64);
        pages + leaves + leaves / 40
    })
}

fn written_sums(root: &TreeRoot) -> Sums {
    match root {
        TreeRoot::Empty => Sums::default(),
        TreeRoot::Disk(link) => link.sums,
        TreeRoot::Memory(node) => node.written.get().map(|link| link.sums).unwrap_or_default(),
    }
}

impl Shrink {
    /// Pages that are too many and that nobody holds.
    fn excess(&self) -> u64 {
        self.room.high_water.saturating_sub(self.ideal.min(self.room.used) + self.room.held)
    }

    /// Whether the file is notably longer than it need be; what is held counts as needed if `held`.
    fn is_long(&self, held: bool) -> bool {
        let held = if held { 2 * self.room.held } else { 0 };
        let needed = self.ideal.min(self.room.used) + held;
        self.room.high_water > needed + needed / SLACK_PART + SLACK_PAGES
    }

    /// A checkpoint is durable.
    pub(crate) fn checkpoint(&mut self, room: Room, ideal: u64) {
        (self.room, self.ideal) = (room, ideal);
        if !self.is_long(false) {
            self.in_vain = None;
        }
        match self.phase {
            Phase::Rest => {
                let more = self.in_vain.is_none_or(|excess| self.excess() > excess + room.high_water / 10);
                if self.is_long(false) && more {
                    self.phase = Phase::Settle(SETTLE - 1);
                }
            }
            Phase::Settle(1) => self.settled(),
            Phase::Settle(checkpoints) => self.phase = Phase::Settle(checkpoints - 1),
            Phase::Ready | Phase::Scanning | Phase::Working => {}
        }
    }

    /// What was waited for is written.
    fn settled(&mut self) {
        self.phase = Phase::Ready;
        match self.pass.take() {
            Some(pass) if !pass.complete => self.pass = Some(pass),
            Some(pass) => {
                let shorter = pass.room.high_water.saturating_sub(self.room.high_water);
                let emptier = pass.room.used.saturating_sub(self.room.used);
                let enough = GAIN_PAGES.max(pass.room.high_water / GAIN_PART);
                if shorter.max(emptier) < enough { self.rest() } else { self.begin_pass() }
            }
            None => self.begin_pass(),
        }
    }

    fn begin_pass(&mut self) {
        if !self.eager && !self.is_long(true) {
            return self.rest();
        }
        let (room, from) = (self.room, Position::default());
        self.pass = Some(Pass { cut: room.cut, room, from, leaves: false, found: false, complete: false });
    }

    fn rest(&mut self) {
        if std::mem::take(&mut self.again) {
            (self.phase, self.pass) = (Phase::Settle(SETTLE), None);
            return self.work.clear();
        }
        self.in_vain = self.is_long(false).then(|| self.excess());
        (self.phase, self.eager, self.pass) = (Phase::Rest, false, None);
        self.work.clear();
    }

    fn found(&mut self, plan: ShrinkPlan) {
        let Some(pass) = &mut self.pass else { return self.rest() };
        pass.found |= !plan.work.is_empty();
        self.work = plan.work;
        match plan.rest {
            Some(from) => pass.from = from,
            None if pass.leaves => pass.complete = true,
            None => (pass.from, pass.leaves) = (Position::default(), true),
        }
        if self.work.is_empty() {
            self.worked(0);
        } else {
            self.phase = Phase::Working;
        }
    }

    /// The list is done. So many checkpoints are under way that do not have all of it.
    fn worked(&mut self, running: u8) {
        let Some(pass) = &self.pass else { return self.rest() };
        self.phase = match (pass.complete, pass.found, self.phase) {
            (true, true, _) => Phase::Settle(SETTLE + running),
            (true, false, _) => return self.rest(),
            (false, _, Phase::Scanning) => Phase::Ready,
            (false, ..) => Phase::Settle(1 + running),
        };
    }
}

impl Store {
    /// Asks for the file to be made as short as it gets: `shrink_rests` says when that is done.
    pub fn shrink_now(&mut self) {
        let shrink = &mut self.shrink;
        (shrink.eager, shrink.in_vain) = (true, None);
        match shrink.phase {
            Phase::Rest => shrink.phase = Phase::Settle(SETTLE),
            _ => shrink.again = true,
        }
    }

    /// Whether the file is as short as it gets, or as short as it need be.
    pub fn shrink_rests(&self) -> bool {
        self.shrink.phase == Phase::Rest
    }

    /// Whether `shrink_step` has something to do.
    pub fn shrink_has_work(&self) -> bool {
        self.shrink.phase == Phase::Working && !self.shrink_waits()
    }

    /// Whether a checkpoint is what keeps the file from getting shorter.
    pub fn shrink_wants_checkpoint(&self) -> bool {
        match self.shrink.phase {
            Phase::Settle(_) => true,
            Phase::Working => self.shrink_waits(),
            Phase::Rest | Phase::Ready | Phase::Scanning => false,
        }
    }

    fn shrink_waits(&self) -> bool {
        self.dirty_bytes() > self.dirty_bytes_max / DIRTY_WAIT
    }

    /// A walk to be run on a thread that may block, if one is due. Its outcome goes to `finish_shrink_scan`.
    pub fn begin_shrink_scan(&mut self) -> Option<ShrinkScan> {
        let state = self.published();
        let shrink = &mut self.shrink;
        let pass = shrink.pass.as_mut().filter(|_| shrink.phase == Phase::Ready)?;
        let room = shrink.room.free.max(GROW_PAGES + shrink.room.high_water / GROW_PART);
        let pages_max = room.min((self.dirty_bytes_max / DIRTY_PART / PAGE) as u64);
        shrink.phase = Phase::Scanning;
        Some(ShrinkScan {
            state,
            cut: pass.cut,
            pages_max: pages_max as usize,
            leaves: pass.leaves,
            from: pass.from.clone(),
        })
    }

    /// Takes note of what a walk found. An error ends the pass: what cannot be read stays where it is, and whoever
    /// needs it gets the error.
    pub fn finish_shrink_scan(&mut self, outcome: Result<ShrinkPlan, StoreError>) {
        match outcome {
            Ok(plan) => self.shrink.found(plan),
            Err(error) => self.give_up_shrinking(&error),
        }
    }

    fn give_up_shrinking(&mut self, error: &StoreError) {
        log::warn!("the store's file cannot be made shorter: {error}");
        self.shrink.again = false;
        self.shrink.rest();
    }

    /// Takes up to so many pages into memory, or a few more, for the next checkpoint to write to better places. Whether
    /// there is something to be published. Errors: Stopped; what cannot be read ends the pass instead.
    pub fn shrink_step(&mut self, pages: usize) -> Result<bool, StoreError> {
        self.state.source.check_running()?;
        let Some(cut) = self.shrink.pass.as_ref().filter(|_| self.shrink_has_work()).map(|pass| pass.cut)
        else {
            return Ok(false);
        };
        let mut taken = 0;
        while taken < pages
            && let Some(work) = self.shrink.work.pop_front()
        {
            let (mut edit, root) = self.edit(work.tree);
            match edit.rearrange(root, &work, cut) {
                Ok(count) => taken += count,
                Err(error) => {
                    self.give_up_shrinking(&error);
                    return Ok(true);
                }
            }
        }
        if self.shrink.work.is_empty() {
            self.shrink.worked(u8::from(self.is_checkpointing()));
        }
        Ok(true)
    }
}
