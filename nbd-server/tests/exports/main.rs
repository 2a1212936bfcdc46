//! A server over a real pool, as clients see it.

#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod support;
