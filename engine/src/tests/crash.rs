//! A recorded run with several checkpoints, cut at every operation of the disk.
