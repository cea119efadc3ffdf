"""How much of each: one budget spread over units, bits, or any menu of sizes and costs. Read `units` first."""
