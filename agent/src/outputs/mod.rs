//! What the last committed snapshot looks like from outside. An output never feeds anything
//! upstream, and a slow or dead one never holds the others.
