"""Check every identity of docs/method.md, dense and in float64, and print the errors.

    python scripts/check_identities.py

Independent of the package: NumPy only, explicit projectors, explicit complements. Each line is
the largest relative error over random spans with k_s = k_t and not, on both sides of dim / 2.
"""

import numpy as np

CASES = [(40, 60, 12, 12), (40, 60, 12, 20), (40, 60, 31, 31), (40, 60, 33, 12), (48, 48, 24, 24)]
NEAR, FAR = 0.05, 3.0
"""How far the target span is turned away from the source span."""


def spans(rng, dim: int, k_s: int, k_t: int, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal columns of a source span, and of a target span near (or far from) it."""
    m = max(k_s, k_t)
    base, _ = np.linalg.qr(rng.normal(size=(dim, m)))
    moved, _ = np.linalg.qr(base + turn * rng.normal(size=(dim, m)) / dim**0.5)
    return base[:, :k_s], moved[:, :k_t]


def principal(source: np.ndarray, target: np.ndarray):
    """F, G and c, padded to max(k_s, k_t) columns."""
    x, c, y_t = np.linalg.svd(target.T @ source)
    width = max(source.shape[1], target.shape[1])
    f, g = (np.zeros((len(source), width)) for _ in range(2))
    f[:, : source.shape[1]], g[:, : target.shape[1]] = source @ y_t.T, target @ x
    return f, g, np.pad(c, (0, width - len(c)))


def along(f, g, c, b):
    """docs/method.md 4."""
    return g @ (c[:, None] * (f.T @ b))


def across(f, g, c, b):
    """docs/method.md 4."""
    p, q = f.T @ b, g.T @ b
    return b - f @ p - g @ (q - c[:, None] * p)


def rotate(f, g, c, b):
    """docs/method.md 4; pairs with c = 0 are left still."""
    p, q = f.T @ b, g.T @ b
    w = (p + q) / (1 + c)[:, None]
    moves = (c > 0)[:, None]
    return b + g @ (moves * (2 * p - w)) - f @ (moves * w)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative Frobenius error."""
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))


def check_case(rng, out: int, width: int, k_s: int, k_t: int, turn: float) -> dict[str, float]:
    """All identities on one pair of spans per side and one update of rank 3."""
    u_s, u_t = spans(rng, out, k_s, k_t, turn)
    v_s, v_t = spans(rng, width, k_s, k_t, turn)
    up, down = rng.normal(size=(out, 3)), rng.normal(size=(3, width))
    delta = up @ down
    p_s, p_t, q_s, q_t = (z @ z.T for z in (u_s, u_t, v_s, v_t))
    i, j = np.eye(out), np.eye(width)
    left, right = principal(u_s, u_t), principal(v_s, v_t)
    inside = along(*left, up) @ along(*right, down.T).T
    outside = across(*left, up) @ across(*right, down.T).T
    m_full, n_full = p_t @ p_s + (i - p_t) @ (i - p_s), q_s @ q_t + (j - q_s) @ (j - q_t)
    both = (along(*left, up) + across(*left, up)) @ (
        along(*right, down.T) + across(*right, down.T)
    ).T
    r = rotate(*left, i)
    phi = np.sum((u_s.T @ u_t) ** 2) / min(k_s, k_t)
    blocks = [a @ delta @ b for a in (p_s, i - p_s) for b in (q_s, j - q_s)]
    found = {
        "along: P_t P_s dW Q_s Q_t": error(inside, p_t @ p_s @ delta @ q_s @ q_t),
        "across: (I-P_t)(I-P_s) dW (I-Q_s)(I-Q_t)": error(
            outside, (i - p_t) @ (i - p_s) @ delta @ (j - q_s) @ (j - q_t)
        ),
        "full: (M_par+M_perp) dW (N_par+N_perp)": error(both, m_full @ delta @ n_full),
        "R is orthogonal": error(r.T @ r, i),
        "R^T: exchange F and G": error(rotate(left[1], left[0], left[2], i), r.T),
        "Phi = sum c^2 / min(k)": abs(phi - np.sum(left[2] ** 2) / min(k_s, k_t)),
        "four blocks: energies add up": abs(
            sum(np.sum(b**2) for b in blocks) / np.sum(delta**2) - 1
        ),
        "singular values of a sum of orthogonal parts are the union": error(
            np.sort(np.linalg.svd(inside + outside, compute_uv=False))[-6:],
            np.sort(
                np.concatenate(
                    [np.linalg.svd(part, compute_uv=False)[:3] for part in (inside, outside)]
                )
            ),
        ),
    }
    if k_s == k_t:
        # The polar factor is unique while the matrix is regular: every c > 0.
        x, _, y_t = np.linalg.svd(m_full)
        found["R = polar factor of P_t P_s + (I-P_t)(I-P_s)"] = error(r, x @ y_t)
        found["R U_s spans U_t"] = error(p_t @ r @ u_s, r @ u_s)
    return found


def check_equal_bases(rng) -> dict[str, float]:
    """Between equal bases prolora keeps f_U f_V + (1 - f_U)(1 - f_V) of an isotropic update."""
    out, width, k, draws = 40, 60, 15, 4000
    u, _ = np.linalg.qr(rng.normal(size=(out, k)))
    v, _ = np.linalg.qr(rng.normal(size=(width, k)))
    kept = total = 0.0
    for _ in range(draws):
        delta = np.outer(rng.normal(size=out), rng.normal(size=width))
        inside = u @ (u.T @ delta @ v) @ v.T
        outside = delta - u @ (u.T @ delta)
        outside = outside - (outside @ v) @ v.T
        kept, total = kept + np.sum((inside + outside) ** 2), total + np.sum(delta**2)
    f_u, f_v = k / out, k / width
    name = f"isotropic update, equal bases: share kept by prolora ({draws} draws, statistical)"
    return {name: abs(kept / total - (f_u * f_v + (1 - f_u) * (1 - f_v)))}


def main() -> None:
    """Print the largest error of each identity."""
    rng = np.random.default_rng(0)
    worst: dict[str, float] = {}
    for case in CASES:
        for turn in (0.0, NEAR, 1.0, FAR):
            for name, value in check_case(rng, *case, turn).items():
                worst[name] = max(worst.get(name, 0.0), value)
    worst |= check_equal_bases(rng)
    for name, value in worst.items():
        print(f"{value:9.1e}  {name}")


if __name__ == "__main__":
    main()
