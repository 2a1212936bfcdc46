//! Where requests go.

use std::io::{Error, ErrorKind, Result};

use crate::options::{BLOCK_BYTES, Load, Pattern, Until};

/// The places of one connection's requests.
pub struct Places {
    order: Order,
    size: u64,
    /// How many requests, or blocks, the span has room for.
    units: u64,
    random: Random,
}

enum Order {
    Random,
    /// Connections start apart from each other.
    Sequential {
        next: u64,
    },
    /// Request N goes to block N times `step`: to a block of its own, with `step` and `units` coprime.
    Scattered {
        step: u64,
    },
}

impl Places {
    /// Those of connection `index` on an export of `export_bytes`.
    pub fn new(options: &Load, index: usize, export_bytes: u64) -> Result<Places> {
        let span = options.span.unwrap_or(export_bytes).min(export_bytes);
        let size = u64::from(options.size);
        let scattered = options.pattern == Pattern::BlockWrite;
        let units = span / if scattered { BLOCK_BYTES } else { size };
        if units == 0 {
            return Err(unfit("the export is smaller than a request"));
        }
        let order = match options.pattern {
            Pattern::RandomRead | Pattern::RandomWrite => Order::Random,
            Pattern::SequentialRead | Pattern::SequentialWrite => Order::Sequential {
                next: (units / options.connections as u64).max(1) * index as u64 % units,
            },
            Pattern::BlockWrite => match options.until {
                Until::Requests(count) if count <= units => Order::Scattered {
                    step: scattering_step(units),
                },
                _ => {
                    return Err(unfit(
                        "blockwrite takes --requests, as many as there are blocks",
                    ));
                }
            },
        };
        let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((index as u64) << 32 | 1);
        Ok(Places {
            order,
            size,
            units,
            random: Random(seed),
        })
    }

    /// The place, in bytes, of the next request, which is number `request` among all connections'.
    pub fn next(&mut self, request: u64) -> u64 {
        match &mut self.order {
            Order::Random => self.random.next() % self.units * self.size,
            Order::Sequential { next } => {
                let place = *next;
                *next = (place + 1) % self.units;
                place * self.size
            }
            Order::Scattered { step } => {
                let block = request * *step % self.units;
                let part = self.random.next() % (BLOCK_BYTES / self.size);
                block * BLOCK_BYTES + part * self.size
            }
        }
    }
}

fn unfit(what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

/// Near the golden section of `units`, so that one visit lies far from those before it.
fn scattering_step(units: u64) -> u64 {
    let mut step = units * 618 / 1000 + 1;
    while greatest_common_divisor(step, units) > 1 {
        step += 1;
    }
    step
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        return a;
    }
    greatest_common_divisor(b, a % b)
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::options::Flush;

    #[test]
    fn block_writes_go_to_a_block_each() {
        for blocks in [1, 2, 3, 97, 1024, 5000] {
            let load = Load {
                socket: "s".into(),
                export: "e".to_owned(),
                pattern: Pattern::BlockWrite,
                size: 4096,
                depth: 1,
                connections: 1,
                span: None,
                until: Until::Requests(blocks),
                structured: true,
                seed: 1,
                flush: Flush::Never,
            };
            let mut places = Places::new(&load, 0, blocks * BLOCK_BYTES).unwrap();
            let seen: BTreeSet<u64> = (0..blocks)
                .map(|request| places.next(request) / BLOCK_BYTES)
                .collect();
            assert_eq!(seen.len() as u64, blocks);
            assert!(seen.last().is_some_and(|last| *last < blocks));
        }
    }
}
