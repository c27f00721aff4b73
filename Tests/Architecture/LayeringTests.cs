using System.Runtime.CompilerServices;
using System.Xml.Linq;
using Xunit;

namespace LaspNative.Tests.Architecture;

/// <summary>Runtime &lt;- Autograd &lt;- Collectives &lt;- Model &lt;- {Model/Cli, Perf, Tests}: a project references only what stands to its left.</summary>
public class LayeringTests
{
    private static readonly string[] s_layers = ["LaspNative.Runtime", "LaspNative.Autograd", "LaspNative.Collectives", "LaspNative.Model"];

    [Fact]
    public void Assemblies_reference_only_lower_layers()
    {
        for (int layer = 0; layer < s_layers.Length; layer++)
        {
            System.Reflection.Assembly assembly = System.Reflection.Assembly.Load(s_layers[layer]);
            string[] references = [.. assembly.GetReferencedAssemblies().Select(r => r.Name!).Where(n => n.StartsWith("LaspNative", StringComparison.Ordinal) || n == "lasp")];
            Assert.All(references, r => Assert.Contains(r, s_layers[..layer]));
        }
    }

    [Fact]
    public void Projects_reference_only_lower_layers()
    {
        string root = Path.GetFullPath(Path.Combine(SourceFolder(), "..", ".."));
        if (!File.Exists(Path.Combine(root, "LaspNative.sln"))) Assert.Skip("the sources are not beside this executable");
        string[] projects = ["Runtime/LaspNative.Runtime", "Autograd/LaspNative.Autograd", "Collectives/LaspNative.Collectives", "Model/LaspNative.Model"];
        for (int layer = 0; layer < projects.Length; layer++)
        {
            XDocument project = XDocument.Load(Path.Combine(root, projects[layer] + ".csproj"));
            string[] references = [.. project.Descendants("ProjectReference").Select(r => Path.GetFileNameWithoutExtension(r.Attribute("Include")!.Value))];
            Assert.All(references, r => Assert.Contains(r, s_layers[..layer]));
            Assert.DoesNotContain(project.Descendants("PackageReference"), _ => true);
        }
    }

    private static string SourceFolder([CallerFilePath] string path = "") => Path.GetDirectoryName(path)!;
}
