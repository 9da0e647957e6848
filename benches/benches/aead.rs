//! What sealing and opening a packet costs, with each implementation.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use relay_aead::{Implementation, Key, TAG};

/// Bytes of a packet: an acknowledgement's, and those that an MTU of 1,500 and of 9,000 leave.
const LENGTHS: [usize; 3] = [64, 1_420, 8_920];

criterion_group!(benches, seal, open);
criterion_main!(benches);

fn seal(criterion: &mut Criterion) {
    each(criterion, "aead/seal", |key, bencher, length| {
        let plaintext = vec![5; length];
        let mut sealed = vec![0; length + TAG];
        let mut counter = 0;
        bencher.iter(|| {
            key.seal(counter, black_box(&plaintext), black_box(&mut sealed));
            counter += 1;
        });
    });
}

fn open(criterion: &mut Criterion) {
    each(criterion, "aead/open", |key, bencher, length| {
        let mut sealed = vec![0; length + TAG];
        key.seal(1, &vec![5; length], &mut sealed);
        let mut plaintext = vec![0; length];
        bencher.iter(|| {
            assert!(key.open(1, black_box(&sealed), black_box(&mut plaintext)));
        });
    });
}

fn each(
    criterion: &mut Criterion,
    name: &str,
    measure: impl Fn(&Key, &mut criterion::Bencher<'_>, usize),
) {
    let mut group = criterion.benchmark_group(name);
    for length in LENGTHS {
        group.throughput(Throughput::Bytes(length as u64));
        for (name, implementation) in [
            ("ring", Implementation::Ring),
            ("wide", Implementation::Wide),
        ] {
            let key = Key::with(&[7; 32], implementation);
            group.bench_function(BenchmarkId::new(name, length), |bencher| {
                measure(&key, bencher, length);
            });
        }
    }
}
