//! What waits to be sent to a member over one way: bounded, and with what is short and urgent before what is long.
//!
//! Whatever carries entries goes into the second lane, all else into the first, so that a heartbeat or a vote waits
//! for no entries. Each lane keeps its order. What does not fit is given back: raft sends again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use trilith_proto::raftpb::{Message, MessageType};

/// Bytes that may wait in the second lane; one message may be longer.
const BYTES_MAX: usize = 64 << 20;
/// What a message or an entry takes beside its bytes.
const COST: usize = 128;

/// Which lanes somebody takes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    /// The urgent one first.
    Any,
    /// Only the urgent one.
    Urgent,
}

/// Why a message was not taken.
#[derive(Debug, PartialEq)]
pub(super) enum Refused {
    /// Too much waits already.
    Full,
    /// Nobody sends from here any more: the message for another way.
    Closed(Box<Message>),
}

#[derive(Debug, Default)]
struct Lanes {
    urgent: VecDeque<Message>,
    bulk: VecDeque<Message>,
    bulk_bytes: usize,
    closed: bool,
    waiting: Vec<Waker>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    lanes: Mutex<Lanes>,
    messages_max: usize,
}

impl Queue {
    /// Each lane holds so many messages at most.
    pub(super) fn new(messages_max: usize) -> Queue {
        Queue { lanes: Mutex::default(), messages_max }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().expect("no holder of this lock panics")
    }

    pub(super) fn push(&self, message: Message) -> Result<(), Refused> {
        let mut lanes = self.lanes();
        if lanes.closed {
            return Err(Refused::Closed(Box::new(message)));
        }
        if is_urgent(&message) {
            if lanes.urgent.len() >= self.messages_max {
                return Err(Refused::Full);
            }
            lanes.urgent.push_back(message);
        } else {
            let bytes = cost(&message);
            let full = !lanes.bulk.is_empty() && lanes.bulk_bytes + bytes > BYTES_MAX;
            if full || lanes.bulk.len() >= self.messages_max {
                return Err(Refused::Full);
            }
            lanes.bulk_bytes += bytes;
            lanes.bulk.push_back(message);
        }
        let waiting = std::mem::take(&mut lanes.waiting);
        drop(lanes);
        waiting.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// The next message; None once the queue is closed.
    pub(super) fn poll_pop(&self, take: Take, context: &mut Context<'_>) -> Poll<Option<Message>> {
        let mut lanes = self.lanes();
        if lanes.closed {
            return Poll::Ready(None);
        }
        let mut next = lanes.urgent.pop_front();
        if next.is_none() && take == Take::Any {
            next = lanes.bulk.pop_front();
            lanes.bulk_bytes -= next.as_ref().map_or(0, cost);
        }
        if next.is_some() {
            return Poll::Ready(next);
        }
        if !lanes.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            lanes.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// The same, waiting.
    pub(super) async fn pop(&self, take: Take) -> Option<Message> {
        std::future::poll_fn(|context| self.poll_pop(take, context)).await
    }

    /// Ends the queue. Whether something was left in it.
    pub(super) fn close(&self) -> bool {
        let mut lanes = self.lanes();
        lanes.closed = true;
        let left = !lanes.urgent.is_empty() || !lanes.bulk.is_empty();
        (lanes.urgent, lanes.bulk) = (VecDeque::new(), VecDeque::new());
        let waiting = std::mem::take(&mut lanes.waiting);
        drop(lanes);
        waiting.into_iter().for_each(Waker::wake);
        left
    }
}

fn is_urgent(message: &Message) -> bool {
    !matches!(message.r#type(), MessageType::MsgApp | MessageType::MsgProp | MessageType::MsgSnap)
}

fn cost(message: &Message) -> usize {
    let entries = message.entries.iter().map(|entry| COST + entry.data().len());
    COST + message.context().len() + entries.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use trilith_proto::raftpb::{Entry, Message, MessageType};

    use super::{BYTES_MAX, Queue, Refused, Take};

    fn message(kind: MessageType, index: u64, bytes: usize) -> Message {
        let entry = Entry { data: Some(vec![0; bytes].into()), ..Entry::default() };
        let entries = if bytes > 0 { vec![entry] } else { vec![] };
        Message { r#type: Some(kind.into()), index: Some(index), entries, ..Message::default() }
    }

    fn pop(queue: &Queue, take: Take) -> Option<u64> {
        match queue.poll_pop(take, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(message) => Some(message?.index()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn urgent_ones_overtake_and_each_lane_keeps_its_order() {
        use MessageType::{MsgApp, MsgHeartbeat, MsgProp, MsgVoteResp};
        let queue = Queue::new(10);
        for (kind, index) in [(MsgApp, 1), (MsgHeartbeat, 2), (MsgProp, 3), (MsgVoteResp, 4)] {
            queue.push(message(kind, index, 0)).unwrap();
        }
        assert_eq!(pop(&queue, Take::Urgent), Some(2));
        assert_eq!([(); 4].map(|()| pop(&queue, Take::Any)), [Some(4), Some(1), Some(3), None]);
    }

    #[test]
    fn it_is_bounded_by_number_and_by_bytes() {
        let queue = Queue::new(3);
        for index in 0..3 {
            queue.push(message(MessageType::MsgApp, index, 0)).unwrap();
        }
        assert_eq!(queue.push(message(MessageType::MsgApp, 3, 0)), Err(Refused::Full));
        queue.push(message(MessageType::MsgHeartbeat, 9, 0)).unwrap();
        assert_eq!([pop(&queue, Take::Any), pop(&queue, Take::Any)], [Some(9), Some(0)]);
        assert_eq!(queue.push(message(MessageType::MsgApp, 4, BYTES_MAX)), Err(Refused::Full));
        while pop(&queue, Take::Any).is_some() {}
        queue.push(message(MessageType::MsgApp, 5, 2 * BYTES_MAX)).unwrap();
        assert_eq!(queue.push(message(MessageType::MsgApp, 6, 0)), Err(Refused::Full));
        assert_eq!(pop(&queue, Take::Urgent), None);
        assert_eq!(pop(&queue, Take::Any), Some(5));
        queue.push(message(MessageType::MsgApp, 7, 1)).unwrap();
    }

    #[test]
    fn a_closed_one_gives_back_and_tells_what_was_lost() {
        let queue = Queue::new(3);
        assert!(!queue.close());
        let heartbeat = message(MessageType::MsgHeartbeat, 1, 0);
        assert_eq!(queue.push(heartbeat.clone()), Err(Refused::Closed(Box::new(heartbeat.clone()))));
        let queue = Queue::new(3);
        queue.push(heartbeat).unwrap();
        assert!(queue.close());
        let context = &mut Context::from_waker(Waker::noop());
        assert_eq!(queue.poll_pop(Take::Any, context), Poll::Ready(None));
    }
}
