//! Prints GFLOP/s of the products at the shapes that calibration runs: `cargo bench -p halfbyte-tensor`.

use halfbyte_tensor::{Rows, gram, isa, product};
use std::time::Instant;

fn main() {
    println!("{:?}, {} threads", isa(), rayon::current_num_threads());
    for (t, n, k) in
        [(512, 576, 576), (512, 1536, 576), (512, 576, 1536), (2048, 1536, 576), (512, 4096, 4096)]
    {
        let x: Vec<f32> = (0..t * k).map(|i| (i % 97) as f32 / 97.0).collect();
        let w: Vec<half::bf16> = (0..n * k).map(|i| half::bf16::from_f32((i % 89) as f32 / 89.0)).collect();
        let repeats = (4_000_000_000 / (t * n * k)).max(1);
        let start = Instant::now();
        for _ in 0..repeats {
            std::hint::black_box(product(&Rows::new(&x, k), &Rows::new(&w, k)));
        }
        let flops = (2 * t * n * k * repeats) as f64;
        let forward = flops / start.elapsed().as_secs_f64() / 1e9;
        let mut g = vec![0.0; k * k];
        let repeats = (4_000_000_000 / (t * k * k)).max(1);
        let start = Instant::now();
        for _ in 0..repeats {
            gram(&x, k, &mut g);
        }
        let useful = (t * k * k * repeats) as f64 / start.elapsed().as_secs_f64() / 1e9;
        println!(
            "{t:5} x {n:5} x {k:5}: product {forward:6.1}, gram {useful:6.1} (half the products of a full one)"
        );
    }
}
