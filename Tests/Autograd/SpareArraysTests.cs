using LaspNative.Autograd;
using Xunit;

namespace LaspNative.Tests.Autograd;

/// <summary>Arrays that functions hand on: none is anybody's twice, and a thread that only gives back does not keep them all.</summary>
public sealed class SpareArraysTests
{
    private sealed class Item;

    [Fact]
    public void An_array_that_was_given_back_comes_emptied_and_once()
    {
        Item?[] former = SpareArrays<Item>.Take(3);
        Assert.Equal(3, former.Length);
        former[1] = new Item();
        SpareArrays<Item>.Return(former);
        Item?[] first = SpareArrays<Item>.Take(3), second = SpareArrays<Item>.Take(3);
        Assert.Same(former, first);
        Assert.NotSame(first, second);
        Assert.All(first, Assert.Null);
    }

    [Fact]
    public void A_thread_that_only_gives_back_keeps_a_limited_number()
    {
        var given = new HashSet<object>(ReferenceEqualityComparer.Instance);
        for (int i = 0; i < 100_000; i++)
        {
            var array = new Item?[2];
            given.Add(array);
            SpareArrays<Item>.Return(array);
        }
        int kept = 0;
        while (given.Contains(SpareArrays<Item>.Take(2))) kept++;
        Assert.InRange(kept, 1000, 20_000);
    }
}
