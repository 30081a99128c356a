//! Bandwidth of the kernels beside memcpy, on one core, from the second-level cache and from memory.
//!
//!     cargo bench -p halfbyte-formats
//!
//! GB/s counts the bytes of x once, for every line, so that lines compare as times do. Each figure is the fastest of
//! several runs.

use std::hint::black_box;
use std::time::Instant;

use halfbyte_formats::{Element, kernel};

fn main() {
    println!("{:<28}{:>14}{:>9}{:>14}{:>9}", "", "256 KiB GB/s", "/memcpy", "256 MiB GB/s", "/memcpy");
    let near = measure((256 << 10) / 4, 400);
    let far = measure((256 << 20) / 4, 1);
    for ((name, near_speed), (_, far_speed)) in near.iter().zip(&far) {
        println!(
            "{name:<28}{near_speed:>14.1}{:>9.2}{far_speed:>14.1}{:>9.2}",
            near_speed / near[0].1,
            far_speed / far[0].1
        );
    }
}

/// GB/s of each kernel over `n` values, `repeat` passes a run.
fn measure(n: usize, repeat: usize) -> Vec<(&'static str, f64)> {
    let element = Element::E2M1;
    let scale = 0.37;
    let x: Vec<f32> =
        (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 4e6 - 2.0).collect();
    let mut out = vec![1f32; n];
    let mut codes = vec![1u8; n];
    // Columns of the matrix that x stands for: what a column kernel reads again for every row. With 4096 of them, the
    // scales and their inverses alone fill a first-level cache of 32 KiB.
    let widest = 4096;
    let scales: Vec<f32> = (0..widest).map(|j| 0.1 + (j % 7) as f32).collect();
    let inverse: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
    let (g, c) = (vec![0.5f32; widest], vec![-0.1f32; widest]);

    let mut results = Vec::new();
    let mut time = |name, run: &mut dyn FnMut()| {
        let fastest = (0..9).map(|_| {
            let start = Instant::now();
            (0..repeat).for_each(|_| run());
            start.elapsed().as_secs_f64()
        });
        let seconds = fastest.fold(f64::INFINITY, f64::min);
        results.push((name, (4 * n * repeat) as f64 / seconds / 1e9));
    };
    time("memcpy", &mut || black_box(&mut out).copy_from_slice(black_box(&x)));
    time("fake_quantize", &mut || kernel::fake_quantize(element, scale, black_box(&x), black_box(&mut out)));
    time("fake_quantize_in_place", &mut || {
        kernel::fake_quantize_in_place(element, scale, black_box(&mut out))
    });
    for (name, cols) in [("fake_quantize_columns 1024", 1024), ("fake_quantize_columns 4096", widest)] {
        time(name, &mut || {
            for (x, out) in black_box(&x).chunks(cols).zip(out.chunks_mut(cols)) {
                kernel::fake_quantize_columns(element, &scales[..cols], &inverse[..cols], x, black_box(out));
            }
        });
    }
    let shifts: Vec<u8> = (0..widest).map(|j| (j % 7) as u8).collect();
    for (name, cols) in [("fake_quantize_shifted 1024", 1024), ("fake_quantize_shifted 4096", widest)] {
        time(name, &mut || {
            for (x, out) in black_box(&x).chunks(cols).zip(out.chunks_mut(cols)) {
                kernel::fake_quantize_shifted(element, scale, &shifts[..cols], x, black_box(out));
            }
        });
    }
    time("squared_error", &mut || {
        black_box(kernel::squared_error(element, scale, black_box(&x)));
    });
    for (name, cols) in [("quadratic_error 1024", 1024), ("quadratic_error 4096", widest)] {
        time(name, &mut || {
            for x in black_box(&x).chunks(cols) {
                black_box(kernel::quadratic_error(element, scale, x, &g[..cols], &c[..cols]));
            }
        });
    }
    time("encode", &mut || kernel::encode(element, scale, black_box(&x), black_box(&mut codes)));
    time("decode", &mut || kernel::decode(element, scale, black_box(&codes), black_box(&mut out)));
    time("max_abs", &mut || {
        black_box(kernel::max_abs(black_box(&x)));
    });
    results
}
